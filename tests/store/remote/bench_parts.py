"""Part sizes of large uploads against a server on loopback that throws them away.

`python tests/store/remote/bench_parts.py`.

Each connection gets so many bytes a second at most, as in object storage; each upload once whole, and once with its
second part cut in the middle. Memory is the client's, at most, less what it has before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

READ_BYTES = 256 << 10
CLIENT = """
import json, pathlib, resource, sys, time
from championship_sr.store.remote import bucket as remote
from championship_sr.store.remote.bucket import Bucket
path, chosen = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
if chosen:
    remote.parts_of_upload = lambda n_bytes: tuple(chosen)
place = Bucket("s3://bench")
place.put("small", b"x")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.perf_counter()
place.upload("large", path)
print(json.dumps({"seconds": time.perf_counter() - started, "mib": peak() - before}))
"""


class Sink(BaseHTTPRequestHandler):
    """Takes puts, whole and in parts."""

    protocol_version = "HTTP/1.1"
    bytes_a_second = 0.0
    cut = False  # the next second part
    received = requests = 0
    lock = threading.Lock()

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        with self.lock:
            cut = Sink.cut and "partNumber=2" in self.path
            Sink.cut = Sink.cut and not cut
        self._take(length // 2 if cut else length)
        if cut:
            self.connection.close()
            self.close_connection = True
        else:
            self._answer(b"", {"ETag": '"0"'})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = "CompleteMultipartUploadResult" if "uploadId" in self.path else "InitiateMultipartUploadResult"
        text = f"<{name}><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId><ETag>0</ETag></{name}>"
        self._answer(text.encode(), {})

    def do_DELETE(self) -> None:
        self._answer(b"", {})

    def _take(self, length: int) -> None:
        started, taken = time.perf_counter(), 0
        while taken < length:
            taken += len(self.rfile.read(min(READ_BYTES, length - taken)))
            time.sleep(max(0.0, taken / self.bytes_a_second - (time.perf_counter() - started)))
        with self.lock:
            Sink.received += length

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        with self.lock:
            Sink.requests += 1
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""


def uploaded(path: Path, chosen: list[int] | None) -> dict[str, float]:
    """One upload in a process of its own; `chosen`: bytes of a part, and how many go at once."""
    Sink.received = Sink.requests = 0
    command = [sys.executable, "-c", CLIENT, str(path), json.dumps(chosen)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) | {"received": Sink.received, "requests": Sink.requests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=640, help="size of the file")
    parser.add_argument("--mb-s", type=float, default=50, help="of a connection")
    parser.add_argument("parts", nargs="*", default=["auto"], help="MIBxATONCE, or auto: what upload chooses")
    options = parser.parse_args()
    Sink.bytes_a_second = options.mb_s * 1e6
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": url}
    print("parts | requests | s | MiB | s with a cut part | sent again, MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large"
        with open(path, "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        for text in options.parts:
            mib, _, at_once = text.partition("x")
            chosen = None if text == "auto" else [int(mib) << 20, int(at_once)]
            whole = uploaded(path, chosen)
            Sink.cut = True
            cut = uploaded(path, chosen)
            again = (cut["received"] - path.stat().st_size) / 2**20
            figures = f"{whole['requests']} | {whole['seconds']:.1f} | {whole['mib']:.0f} | {cut['seconds']:.1f}"
            print(f"{text} | {figures} | {again:.0f}", flush=True)


if __name__ == "__main__":
    main()
