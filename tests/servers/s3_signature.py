"""Verifying AWS Signature Version 4, in the Authorization header and in presigned URLs.

After the S3 API reference, "Authenticating Requests: Using the Authorization Header" and
"Using Query Parameters".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from servers.s3_errors import S3Error

__all__ = ["REGION", "Signer", "query_pairs"]

REGION = "us-east-1"
_ALGORITHM = "AWS4-HMAC-SHA256"
_UNRESERVED = "-_.~"
_SKEW = timedelta(minutes=15)


def query_pairs(query: str) -> list[tuple[str, str]]:
    """Names and values of a query, decoded, in their order. A plus is a plus."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return [(unquote(name), unquote(value)) for name, _, value in pairs]


@dataclass(frozen=True)
class _Claim:
    """What a request says about its signature."""

    access_key: str
    scope: str
    signed: list[str]
    signature: str
    date: str
    payload: str
    expires: timedelta | None


class Signer:
    """The one account that may use the server."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        self._access_key = access_key
        self._secret_key = secret_key

    def verify(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
        """The payload hash that the request was signed with; raises `S3Error`.

        `path` and `query` as they came, `headers` under lower-case names.
        """
        pairs = query_pairs(query)
        presigned = any(name == "X-Amz-Signature" for name, _ in pairs)
        if presigned and "authorization" in headers:
            raise S3Error("InvalidArgument", "Only one auth mechanism allowed")
        claim = _from_query(pairs) if presigned else _from_header(headers)
        if claim.access_key != self._access_key:
            raise S3Error("InvalidAccessKeyId", "The access key does not exist in our records.")
        token = dict(pairs).get("X-Amz-Security-Token") or headers.get("x-amz-security-token")
        if token is not None:
            raise S3Error("InvalidToken", "The provided token is malformed or otherwise invalid.")
        day, region, service, last = (claim.scope.split("/") + [""] * 4)[:4]
        if (region, service, last) != (REGION, "s3", "aws4_request"):
            raise S3Error("AuthorizationHeaderMalformed", f"the scope {claim.scope} is wrong")
        if not re.fullmatch(r"\d{8}T\d{6}Z", claim.date) or not claim.date.startswith(day):
            raise S3Error("AccessDenied", "the date is missing or not that of the scope")
        _check_time(claim)
        unsigned = {
            name for name in headers if name == "host" or name.startswith("x-amz-")
        }.difference(claim.signed)
        if unsigned:
            raise S3Error(
                "AccessDenied", f"headers present which were not signed: {sorted(unsigned)}"
            )
        expected = self._signature(claim, method, path, pairs, headers, day)
        if not hmac.compare_digest(expected, claim.signature):
            raise S3Error(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
            )
        return claim.payload

    def _signature(
        self,
        claim: _Claim,
        method: str,
        path: str,
        pairs: list[tuple[str, str]],
        headers: Mapping[str, str],
        day: str,
    ) -> str:
        encoded = sorted(
            (quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED))
            for name, value in pairs
            if name != "X-Amz-Signature"
        )
        canonical = "\n".join(
            [
                method,
                quote(unquote(path), safe=f"/{_UNRESERVED}"),
                "&".join(f"{name}={value}" for name, value in encoded),
                *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in claim.signed),
                "",
                ";".join(claim.signed),
                claim.payload,
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = b"AWS4" + self._secret_key.encode()
        for step in (day, REGION, "s3", "aws4_request"):
            key = hmac.digest(key, step.encode(), "sha256")
        text = "\n".join([_ALGORITHM, claim.date, claim.scope, digest])
        return hmac.digest(key, text.encode(), "sha256").hex()


def _from_header(headers: Mapping[str, str]) -> _Claim:
    text = headers.get("authorization")
    if text is None:
        raise S3Error("AccessDenied", "Access Denied: the request is not signed.")
    found = re.fullmatch(
        rf"{_ALGORITHM} +Credential=([^/,]+)/([^,]+), *SignedHeaders=([^,]+), *Signature=(\w+)",
        text,
    )
    if found is None:
        raise S3Error("AuthorizationHeaderMalformed", "The authorization header is malformed.")
    access_key, scope, signed, signature = found.groups()
    payload = headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error(
            "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"
        )
    date = headers.get("x-amz-date", "")
    return _Claim(access_key, scope, signed.split(";"), signature, date, payload, None)


def _from_query(pairs: list[tuple[str, str]]) -> _Claim:
    fields = dict(pairs)
    names = ("X-Amz-Credential", "X-Amz-SignedHeaders", "X-Amz-Date", "X-Amz-Expires")
    if fields.get("X-Amz-Algorithm") != _ALGORITHM or any(name not in fields for name in names):
        raise S3Error("AuthorizationHeaderMalformed", "The query of the signature is malformed.")
    credential, signed, date, expires = (fields[name] for name in names)
    access_key, _, scope = credential.partition("/")
    if not expires.isdigit() or not 1 <= int(expires) <= 604800:
        raise S3Error("AuthorizationHeaderMalformed", "X-Amz-Expires must be 1 to 604800")
    return _Claim(
        access_key,
        scope,
        signed.split(";"),
        fields["X-Amz-Signature"],
        date,
        "UNSIGNED-PAYLOAD",
        timedelta(seconds=int(expires)),
    )


def _check_time(claim: _Claim) -> None:
    now = datetime.now(UTC)
    signed_at = datetime.strptime(claim.date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if claim.expires is not None:
        if now > signed_at + claim.expires:
            raise S3Error("AccessDenied", "Request has expired")
        if now < signed_at - _SKEW:
            raise S3Error("AccessDenied", "Request is not valid yet")
    elif abs(now - signed_at) > _SKEW:
        raise S3Error("RequestTimeTooSkewed", "The request time is too far from the server's.")
