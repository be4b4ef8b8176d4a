"""moto's S3 server: the semantics of S3, conditional requests and part sizes among them.

It checks signatures once its authentication is on, but accepts wrong checksums of any kind.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

import boto3

from servers.process import ServerMissing, ServerProcess, server_process
from servers.programs import program
from servers.s3_server import S3Server

__all__ = ["MotoS3"]

_EVERYTHING = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}


class MotoS3(S3Server):
    """A running moto in a process of its own: its CPU time is not the client's."""

    def __init__(self) -> None:
        moto = program("moto_server")
        if moto is None:
            raise ServerMissing("moto", "pip install 'moto[server,s3]'")
        self._process: ServerProcess = server_process(
            "moto",
            lambda port, _: [sys.executable, str(moto), "-H", "127.0.0.1", "-p", str(port)],
        )
        endpoint = f"http://127.0.0.1:{self._process.port}"
        try:
            super().__init__(endpoint, *_new_user(endpoint))
            _authentication_on(endpoint)
        except BaseException:
            self._process.stop()
            raise

    def stop(self) -> None:
        self._process.stop()


def _new_user(endpoint: str) -> tuple[str, str]:
    """Create a user that may do everything; its access key and secret key."""
    iam: Any = boto3.session.Session().client(
        "iam",
        endpoint_url=endpoint,
        aws_access_key_id="before",
        aws_secret_access_key="before",
        region_name="us-east-1",
    )
    iam.create_user(UserName="tests")
    iam.put_user_policy(
        UserName="tests", PolicyName="everything", PolicyDocument=json.dumps(_EVERYTHING)
    )
    key = iam.create_access_key(UserName="tests")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def _authentication_on(endpoint: str) -> None:
    # With the content type that urllib gives by itself, moto takes the body for a form.
    request = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth",
        data=b"0",
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    with urllib.request.urlopen(request) as reply:
        reply.read()
