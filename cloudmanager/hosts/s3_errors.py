"""The one border where exceptions of boto3 and of obstore's S3 become ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    HostFull,
    HostUnavailable,
    IntegrityError,
    ObjectArchived,
    ObjectNotFound,
)
from cloudmanager.hosts.obstore_errors import fault_of

__all__ = ["Answer", "answer_of", "mapped", "refusal"]

_TRANSIENT = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequests",
    "TooManyRequestsException",
}
# The bytes were damaged on the way to the service: another try sends them again.
_DAMAGED = {
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_DENIED = {
    "AccessDenied": "the credentials do not allow this, or the bucket belongs to somebody else",
    "AccountProblem": "the account has a problem; ask the provider",
    "AllAccessDisabled": "the provider has closed this bucket; ask the provider",
    "AuthorizationHeaderMalformed": "the credentials or the region do not fit; set region",
    "CredentialsNotSupported": "this kind of credential is not accepted here",
    "ExpiredToken": "the session token has expired; log in again",
    "ExpiredTokenException": "the session token has expired; log in again",
    "InvalidAccessKeyId": "the provider does not know this access key",
    "InvalidSecurity": "the credentials are not valid",
    "InvalidToken": "the session token does not belong to this access key",
    "NotSignedUp": "the account is not signed up for this service",
    "RequestTimeTooSkewed": "the clock of this machine is off by more than 15 minutes",
    "SignatureDoesNotMatch": "the secret access key is wrong",
    "TokenRefreshRequired": "the session token has expired; log in again",
    "UnauthorizedAccess": "the credentials are not valid here",
}
_FULL = {"QuotaExceeded", "ServiceQuotaExceededException", "XMinioStorageFull", "StorageFull"}
_NO_BUCKET = {"NoSuchBucket", "NoSuchBucketException", "InvalidBucketName"}
_NO_OBJECT = {"NoSuchKey", "NoSuchUpload", "NoSuchVersion", "NotFound"}
_REGION = {"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"}
_TRANSPORT: dict[str, tuple[type[HostError], str]] = {
    "connect": (HostUnavailable, "cannot connect"),
    "dns": (HostUnavailable, "the host name cannot be resolved"),
    "timeout": (HostUnavailable, "no answer in time"),
    "broken": (HostUnavailable, "the connection broke before the answer was complete"),
    "garbled": (HostError, "what answers at the endpoint does not speak HTTP; check endpoint_url"),
    "redirect": (HostError, "the bucket lies in another region; set region"),
    "tls": (
        HostError,
        "no trusted TLS connection: see the option ca_bundle, or the server speaks no https",
    ),
    "": (HostError, "the request failed for an unknown reason"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's refusal: HTTP status, S3's error code, and its words where they are safe."""

    status: int | None
    code: str
    text: str = ""


def answer_of(exc: BaseException) -> Answer | None:
    """The server's refusal behind an error of boto3 or obstore; None when there was none."""
    response = getattr(exc, "response", None)
    if isinstance(response, dict):
        error = response.get("Error") or {}
        status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
        code = str(error.get("Code") or "")
        if code.isdigit():  # an answer without a body: boto3 repeats the status
            status, code = status or int(code), ""
        return Answer(status, code, str(error.get("Message") or ""))
    fault = fault_of(exc)
    if fault is None or fault.status is None:
        return None
    return Answer(fault.status, fault.code, fault.text)


@contextmanager
def mapped(
    host: str, operation: str, location: str = "", *, looked: Callable[[], str] = str
) -> Iterator[None]:
    """Map whatever boto3, obstore or a library below them raises inside the block.

    `looked()` tells where the credentials came from, for the message of a refusal.
    """
    try:
        yield
    except (HostError, ConfigurationError):
        raise
    except Exception as exc:
        meaning = _meaning(exc, looked)
        if meaning is None:
            raise
        kind, message = meaning
        if kind is ConfigurationError:
            raise ConfigurationError(f"host {host}: {message}") from exc
        assert issubclass(kind, HostError)
        raise kind(message, host=host, operation=operation, location=location) from exc


def refusal(answer: Answer, *, host: str, operation: str, location: str) -> HostError:
    """The error for a refusal that came inside an answer, as DeleteObjects has them."""
    kind, message = _refused(answer, str)
    return kind(message, host=host, operation=operation, location=location)


def _meaning(exc: Exception, looked: Callable[[], str]) -> tuple[type[Exception], str] | None:
    """The class and message for a foreign exception; None when it is not foreign."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    if isinstance(exc, ClientError):
        answer = answer_of(exc)
        assert answer is not None
        return _refused(answer, looked)
    if isinstance(exc, BotoCoreError):
        return _botocore(exc, looked)
    fault = fault_of(exc)
    if fault is not None:
        if fault.status is not None:
            return _refused(Answer(fault.status, fault.code, fault.text), looked)
        if fault.transport == "credentials":
            return AccessDenied, f"the credentials cannot be renewed; {looked()}"
        return _TRANSPORT[fault.transport]
    if isinstance(exc, TimeoutError):
        return _TRANSPORT["timeout"]
    if isinstance(exc, ConnectionError | HTTPError):
        return _TRANSPORT["broken"]
    return None


def _refused(answer: Answer, looked: Callable[[], str]) -> tuple[type[HostError], str]:
    status, code = answer.status or 0, answer.code
    shown = f"{code or 'error'} (status {status})" if status else code or "error"
    if code in _NO_BUCKET:
        return ContainerNotFound, "there is no such bucket; create it or correct the URL"
    if code in _DAMAGED:
        return HostUnavailable, f"the bytes that arrived are not the ones that were sent: {shown}"
    if code in _TRANSIENT:
        return HostUnavailable, shown
    if code == "InvalidObjectState":
        return ObjectArchived, (
            "the object lies in an archive storage class; restore it first "
            "(aws s3api restore-object), which takes minutes to hours"
        )
    if code in _FULL or status == 507:
        return HostFull, shown
    if code in _DENIED or status in (401, 403):
        hint = _DENIED.get(code, "not allowed")
        return AccessDenied, "; ".join(filter(None, (f"{shown}: {hint}", looked())))
    if code in _REGION or status in (301, 307):
        return HostError, f"{shown}: the bucket lies in another region; set region"
    if code in _NO_OBJECT or (status == 404 and not code):
        return ObjectNotFound, "no such object"
    if status in (408, 429) or (status >= 500 and status != 501):
        return HostUnavailable, shown
    if status == 400 and not code:
        return HostError, f"{shown}: without a reason; often an expired token or a wrong region"
    # The server's own words only where no secret can be in them.
    words = " ".join(answer.text.split())[:200]
    return HostError, f"{shown}: {words}" if words else shown


def _botocore(exc: Exception, looked: Callable[[], str]) -> tuple[type[Exception], str]:
    from botocore import exceptions as boto

    if isinstance(exc, boto.ProfileNotFound):
        return ConfigurationError, "the AWS profile of that name is not configured"
    if isinstance(exc, boto.ConfigParseError | boto.ConfigNotFound):
        return ConfigurationError, "the AWS configuration file cannot be read"
    if isinstance(exc, boto.NoCredentialsError):
        return AccessDenied, (
            "no credentials found: set access_key_id and secret_access_key or a profile, run "
            "`aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(exc, boto.PartialCredentialsError):
        return AccessDenied, "the credentials are incomplete: an access key needs its secret"
    if isinstance(
        exc, boto.CredentialRetrievalError | boto.TokenRetrievalError | boto.SSOError
    ) or type(exc).__name__.startswith("Login"):
        return AccessDenied, f"the credentials cannot be renewed: log in again; {looked()}"
    if isinstance(exc, boto.InvalidRegionError | boto.InvalidEndpointConfigurationError):
        return ConfigurationError, "the region is not valid"
    if isinstance(exc, boto.ParamValidationError | boto.EndpointResolutionError):
        return HostError, " ".join(str(exc).split())[:200]
    if isinstance(exc, boto.SSLError):
        # Also raised when a connection breaks in the middle; only the handshake's verdict stays.
        text = str(exc).lower()
        if "certificate" in text or "hostname" in text or "wrong version" in text:
            return _TRANSPORT["tls"]
        return _TRANSPORT["broken"]
    if isinstance(exc, boto.EndpointConnectionError):
        return _TRANSPORT["dns" if _is_dns(exc) else "connect"]
    if isinstance(exc, boto.ProxyConnectionError):
        return HostUnavailable, "cannot connect to the proxy"
    if isinstance(exc, boto.ReadTimeoutError | boto.ConnectTimeoutError):
        return _TRANSPORT["timeout"]
    if isinstance(exc, boto.IncompleteReadError):
        return HostUnavailable, "the answer ended before it was complete"
    if isinstance(
        exc, boto.ConnectionClosedError | boto.ResponseStreamingError | boto.HTTPClientError
    ):
        inner = _inner(exc)
        if isinstance(inner, TimeoutError) or "timed out" in str(exc).lower():
            return _TRANSPORT["timeout"]
        return _TRANSPORT["broken"]
    if isinstance(exc, boto.FlexibleChecksumError):
        return IntegrityError, "the bytes do not fit the checksum that came with them"
    return HostError, f"{type(exc).__name__}: the request failed"


def _is_dns(exc: Exception) -> bool:
    text = f"{exc} {_inner(exc)}".lower()
    return "resolve" in text or "getaddrinfo" in text or "name or service" in text


def _inner(exc: Exception) -> Any:
    """The exception below one of botocore's, which keeps it in its keyword arguments."""
    kept = getattr(exc, "kwargs", None)
    return kept.get("error") if isinstance(kept, dict) else exc.__cause__
