"""A real S3 over HTTP on loopback, in a thread of the tests."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any
from unittest.mock import patch

import boto3
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from core.ids import new_id

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """A service that gives out fresh buckets."""

    endpoint: str

    def create_bucket(self) -> str:
        """Make a bucket and give its name."""
        name = new_id("bucket").replace("_", "-")
        self.client().create_bucket(Bucket=name)
        return name

    def client(self) -> Any:
        """An independent client, to look behind our own."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )


@contextmanager
def run_s3() -> Iterator[S3Server]:
    """A service on a free loopback port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with patch.object(S3Response, "put_object", _one_at_a_time(S3Response.put_object)):
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield S3Server(f"http://{host}:{port}")
        finally:
            server.stop()


def _one_at_a_time(put_object: Callable[[S3Response], Any]) -> Callable[[S3Response], Any]:
    """S3 decides `If-None-Match` and writes as one; moto looks first and writes later."""
    turn = Lock()

    def put_in_turn(response: S3Response) -> Any:
        with turn:
            return put_object(response)

    return put_in_turn
