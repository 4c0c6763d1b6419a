"""An S3 server on loopback (moto's, in a process of its own), and a proxy in front of it that fails as networks do.

Another server on loopback takes moto's place if CHAMPIONSHIP_S3_ENDPOINT names it; tests/swift_server.sh starts one.
"""

import http.client
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

import boto3
import pytest

from championship_sr.store.remote import bucket as remote
from championship_sr.store.remote import service as remote_service

ENDPOINT = os.environ.get("CHAMPIONSHIP_S3_ENDPOINT", "")  # with its keys in AWS_ACCESS_KEY_ID and so on
CREDENTIALS = {
    name: (ENDPOINT and os.environ.get(name)) or default
    for name, default in {
        "AWS_ACCESS_KEY_ID": "dummy",
        "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_REGION": "us-east-1",
    }.items()
}
SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the test run ends, however it ends
"""


@dataclass
class Fault:
    """What happens to the next `times` requests that fit.

    kind  a status to answer with; "cut": the connection ends in the middle of the body; "stall": a long silence
    """

    kind: int | str
    method: str = ""
    path: str = ""
    times: int = 1
    code: str = "SlowDown"
    header: str = ""  # that the request must have

    def fits(self, request: BaseHTTPRequestHandler) -> bool:
        wanted = self.method in ("", request.command) and self.path in request.path
        return self.times > 0 and wanted and (not self.header or self.header in request.headers)


@dataclass
class Proxy:
    """In front of the server: its faults, and what was asked for."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path
    ranges: list[str] = field(default_factory=list)
    rewrite: Callable[[dict], dict] = dict  # of a request's headers
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, request: BaseHTTPRequestHandler) -> Fault | None:
        with self.lock:
            self.requests.append((request.command, request.path))
            if "Range" in request.headers:
                self.ranges.append(request.headers["Range"])
            fault = next((each for each in self.faults if each.fits(request)), None)
            if fault:
                fault.times -= 1
            return fault

    def count(self, method: str, part: str = "") -> int:
        """How many requests there were."""
        return sum(each == method and part in path for each, path in self.requests)


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    if ENDPOINT:
        place = urlsplit(ENDPOINT)
        assert place.hostname in ("127.0.0.1", "localhost"), "these tests fill buckets: on loopback only"
        yield place.port
        return
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=20)


@pytest.fixture
def proxy(s3_port) -> Iterator[Proxy]:
    """A proxy of the test's own."""
    state = Proxy()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state, s3_port))
    server.daemon_threads = True
    server.handle_error = lambda *_arguments: None  # a client that hangs up is what some tests are about
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(proxy, monkeypatch, tmp_path) -> str:
    """The URL of a fresh bucket; requests go through `proxy`, and retries do not take their usual time."""
    for name, value in {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": proxy.url,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}
    monkeypatch.setattr(
        remote_service, "RETRY", {"max_retries": 3, "retry_timeout": timedelta(seconds=20), "backoff": backoff}
    )
    monkeypatch.setattr(remote, "PAUSE_SECONDS", 0.01)
    name = f"bucket-{secrets.token_hex(6)}"
    client(proxy).create_bucket(Bucket=name)
    proxy.requests.clear()
    return f"s3://{name}"


def client(proxy: Proxy):
    """Another client's view of the same server."""
    names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
    return boto3.client("s3", endpoint_url=proxy.url, **dict(zip(names, CREDENTIALS.values(), strict=True)))


@pytest.fixture
def keys(proxy) -> Callable[[str], list[str]]:
    """All keys below a URL, as another client lists them."""

    def listed(url: str) -> list[str]:
        name, _, prefix = url.removeprefix("s3://").partition("/")
        pages = client(proxy).get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=prefix)
        return sorted(item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", ()))

    return listed


def _handler(state: Proxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def _serve(self) -> None:
            fault = state.fault_for(self)
            length = int(self.headers.get("Content-Length") or 0)
            if fault and fault.kind == "cut" and self.command in ("PUT", "POST"):
                self.rfile.read(length // 2)
                self._hang_up()
                return
            body = self.rfile.read(length)
            if fault and fault.kind == "stall":
                time.sleep(1.5)
            if fault and isinstance(fault.kind, int):
                text = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
                self._answer(fault.kind, {}, text)
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            path, mark, query = self.path.partition("?")
            path = quote(unquote(path)) + mark + query  # Google's client escapes more than moto undoes
            connection.request(self.command, path, body, state.rewrite(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            headers = {key: value for key, value in answer.getheaders() if key.lower() not in _OWN_HEADERS}
            if fault and fault.kind == "cut":
                self._answer(answer.status, headers, content[: len(content) // 2], len(content))
                self._hang_up()
            else:
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self._answer(answer.status, headers, content, int(length or len(content)))

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def _answer(self, status: int, headers: dict, content: bytes, length: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            """Says nothing."""

    return Handler


_OWN_HEADERS = ("content-length", "transfer-encoding", "connection", "date", "server")
