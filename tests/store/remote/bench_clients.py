"""obstore and s3fs against one S3 server on loopback: `python tests/store/remote/bench_clients.py` (pip install s3fs).

The server (moto's, in a process of its own, on the same cores) is most of each time: the difference is the clients'.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS, LARGE_BYTES, SMALL = 5, 64 << 20, 100
SERVE = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def with_obstore(url: str) -> tuple[Callable, Callable, Callable, Callable]:
    import obstore
    from obstore.store import S3Store

    store = S3Store("bench", endpoint=url, client_options={"allow_http": True})

    def fetch(key: str, path: Path) -> None:
        with open(path, "wb") as file:
            for part in obstore.get(store, key).stream(min_chunk_size=4 << 20):
                file.write(part)

    return (
        lambda path, key: obstore.put(store, key, path, chunk_size=8 << 20),
        fetch,
        lambda key, content: obstore.put(store, key, content),
        lambda key: obstore.get(store, key).bytes(),
    )


def with_s3fs(url: str) -> tuple[Callable, Callable, Callable, Callable]:
    import s3fs

    files = s3fs.S3FileSystem(client_kwargs={"endpoint_url": url}, use_listings_cache=False)
    return (
        lambda path, key: files.put_file(str(path), f"bench/{key}", chunksize=8 << 20),
        lambda key, path: files.get_file(f"bench/{key}", str(path)),
        lambda key, content: files.pipe_file(f"bench/{key}", content),
        lambda key: files.cat_file(f"bench/{key}"),
    )


def measured(client: tuple[Callable, ...], folder: Path) -> dict[str, float]:
    """One round: MB/s of a large file, ms and processor ms of small requests, one after the other."""
    upload, fetch, put, get = client
    path, back = folder / "large", folder / "back"

    def seconds(work: Callable[[], object]) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    result = {}
    for name, work in (("upload", lambda: upload(path, "large")), ("download", lambda: fetch("large", back))):
        result[f"{name}_mb_s"] = LARGE_BYTES / 1e6 / seconds(work)[0]
    if back.read_bytes() != path.read_bytes():
        raise RuntimeError("other bytes came back")
    small = os.urandom(1000)
    for name, work in (
        ("put", lambda: [put(f"small/{number}", small) for number in range(SMALL)]),
        ("get", lambda: [get(f"small/{number}") for number in range(SMALL)]),
    ):
        wall, cpu = seconds(work)
        result |= {f"{name}_ms": 1000 * wall / SMALL, f"{name}_cpu_ms": 1000 * cpu / SMALL}
    return result


def main() -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy", "AWS_REGION": "us-east-1"}
    server = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{int(server.stdout.readline())}"
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/bench", method="PUT"))
    clients = {"obstore": with_obstore(url), "s3fs": with_s3fs(url)}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "large").write_bytes(os.urandom(LARGE_BYTES))
        for _ in range(ROUNDS + 1):  # the first one warms up; the clients take turns
            for name, client in clients.items():
                rounds[name].append(measured(client, Path(folder)))
    server.stdin.close()
    server.wait()
    for name, all_rounds in rounds.items():
        keys = all_rounds[0]
        print(name, json.dumps({key: round(statistics.median(r[key] for r in all_rounds[1:]), 1) for key in keys}))


if __name__ == "__main__":
    main()
