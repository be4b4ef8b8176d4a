"""Signatures that take the hash of a body from its checksum instead of reading the body again.

Without TLS the signature covers the SHA-256 of the body. botocore reads and hashes the body
for it, though the same hash is in ``x-amz-checksum-sha256`` already: that was a fifth of the
CPU time of a large upload. Signing no hash would be as cheap, but then a server that knows
nothing of checksums could no longer refuse a damaged body.
"""

from __future__ import annotations

import base64
from typing import Any

__all__ = ["sign_with_known_hashes"]

_NAME = "cloudmanager-s3v4-known-hash"
_OPERATIONS = ("PutObject", "UploadPart")


def sign_with_known_hashes(client: Any) -> None:
    """Let a boto3 client for S3 sign uploads that way. What has no checksum is read as ever."""
    from botocore import auth

    if _NAME not in auth.AUTH_TYPE_MAPS:
        auth.AUTH_TYPE_MAPS[_NAME] = _signer(auth.S3SigV4Auth)
    for operation in _OPERATIONS:
        client.meta.events.register(f"choose-signer.s3.{operation}", lambda **_: _NAME)


def _signer(base: Any) -> Any:
    class KnownHashAuth(base):  # type: ignore[misc]
        def payload(self, request: Any) -> str:
            known = request.headers.get("x-amz-checksum-sha256")
            if known and self._should_sha256_sign_payload(request):
                return base64.b64decode(known).hex()
            payload: str = super().payload(request)
            return payload

    return KnownHashAuth
