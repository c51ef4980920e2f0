"""An S3 server of moto on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serving() -> Iterator[dict[str, str]]:
    """The environment under which an S3 client finds the server, which is empty at first."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        # what is stored belongs to the process: it outlives the server that took it
        urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
        yield {**KEYS, "AWS_ENDPOINT_URL": address}
    finally:
        server.stop()
