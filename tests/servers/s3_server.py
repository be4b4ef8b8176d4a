"""What every S3 server of the tests has."""

from __future__ import annotations

import functools
import uuid
from typing import Any

import boto3
from botocore.config import Config

__all__ = ["S3Server"]


class S3Server:
    """An S3 server that checks signatures, and the credentials that it accepts."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str) -> None:
        self.endpoint = endpoint
        self.access_key = access_key
        self.secret_key = secret_key

    def make_bucket(self) -> str:
        """Create an empty bucket and answer with its name, which no other test has."""
        name = f"bucket-{uuid.uuid4().hex[:20]}"
        self._client.create_bucket(Bucket=name)
        return name

    def client(self) -> Any:
        """A new boto3 client, to arrange and inspect behind a host's back."""
        # A session of its own: boto3's default one is not thread-safe.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                # Else links to an endpoint of one's own are signed in the way before version 4.
                signature_version="s3v4",
                retries={"total_max_attempts": 3},
            ),
        )

    @functools.cached_property
    def _client(self) -> Any:
        return self.client()
