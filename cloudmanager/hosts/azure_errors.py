"""The one border where exceptions of the Azure SDK become ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import requests
import urllib3
from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError

from cloudmanager.errors import (
    AccessDenied,
    ContainerNotFound,
    HostError,
    HostFull,
    HostUnavailable,
    IntegrityError,
    ObjectArchived,
    ObjectNotFound,
)

__all__ = ["UNREADABLE", "classify", "code_of", "fail", "mapped", "status_of"]

_CONTAINER_GONE = {"ContainerNotFound", "ContainerDisabled", "ResourceNotFound"}
_DAMAGED = {"Md5Mismatch", "Crc64Mismatch", "InvalidMd5"}
# Another client is at work, or the service has not finished what it was told to do.
_TRANSIENT_CODES = {
    "ContainerBeingDeleted",
    "InternalError",
    "OperationTimedOut",
    "ServerBusy",
    "AccountIsBusy",
    "RequestTimeout",
    "IncompleteBody",
    "PendingCopyOperation",
}
_SIGNATURE = re.compile(r"(\bsig=)[^&\s'\")]+")
_HINTS = {
    "AuthenticationFailed": "the key or the SAS token is wrong or expired, or the clock is off",
    "AuthorizationFailure": "the key is wrong, or the account's firewall does not let us in",
    "AuthorizationPermissionMismatch": "the identity or SAS token does not allow this",
    "AuthorizationResourceTypeMismatch": "the SAS token does not cover this kind of resource",
    "AuthorizationServiceMismatch": "the SAS token is not for the blob service",
    "AuthorizationProtocolMismatch": "the SAS token allows https only",
    "InsufficientAccountPermissions": "the identity or SAS token does not allow this",
    "PublicAccessNotPermitted": "anonymous access is off; give a key, SAS token or identity",
    "NoAuthenticationInformation": "give a key, SAS token or identity",
    "KeyBasedAuthenticationNotPermitted": "the account allows no keys; use azure-identity",
    "LeaseIdMissing": "the blob is leased by another program; break the lease or wait",
    "SnapshotsPresent": "the blob has snapshots; delete them first",
    "BlobImmutableDueToPolicy": "an immutability policy or legal hold protects the blob",
    "InvalidBlobOrBlock": (
        "another program left unfinished blocks under this name; `cloudmanager host clean` "
        "removes them"
    ),
    "InvalidBlobType": "an append or page blob is already there under this name; delete it first",
}


def status_of(exc: BaseException) -> int | None:
    """The HTTP status that an SDK error carries, if it got that far."""
    status = getattr(exc, "status_code", None)
    return status if isinstance(status, int) else None


def code_of(exc: BaseException) -> str:
    """The service's error code, such as ``BlobNotFound``; ``""`` when there is none."""
    code = getattr(exc, "error_code", None)
    # A string enum for the codes that the SDK knows, a plain string for the rest.
    value = getattr(code, "value", code)
    return value if isinstance(value, str) else ""


def fail(exc: Exception, *, host: str, operation: str, location: str) -> NoReturn:
    """Raise what `exc` means in our terms.

    The service's own text is never repeated: for a failed authentication it holds the
    string that was signed, and the request's URL may hold a SAS token.
    """
    kind, message = _classify(exc)
    _hide_signatures(exc)
    raise kind(message, host=host, operation=operation, location=location) from exc


UNREADABLE = (ValueError, KeyError, SyntaxError)
"""What the SDK raises on top of its own errors for an answer that is not what it should be:
bytes that are not UTF-8, a header that is missing, XML that is none (its ParseError)."""


@contextmanager
def mapped(host: str, operation: str, location: str = "") -> Iterator[None]:
    """Map what the SDK, or the libraries below it, raise inside the block.

    The SDK lets a few of requests' and urllib3's errors through while a body is streamed. In
    a put, whose block runs the caller's source and callback too, a ValueError may be theirs
    and passes.
    """
    try:
        yield
    except (AzureError, requests.RequestException, urllib3.exceptions.HTTPError) as exc:
        fail(exc, host=host, operation=operation, location=location)
    except (ConnectionError, TimeoutError) as exc:
        fail(exc, host=host, operation=operation, location=location)
    except UNREADABLE as exc:
        if operation == "put":
            raise
        raise IntegrityError(
            "the answer of the service cannot be read",
            host=host,
            operation=operation,
            location=location,
        ) from exc


def classify(status: int, code: str) -> tuple[type[HostError], str]:
    """What an answer of the service with this status and error code means."""
    shown = f"{code or 'error'} (status {status})"
    if hint := _HINTS.get(code):
        shown = f"{shown}: {hint}"
    elif status in (401, 403):
        shown = f"{shown}: check the account's key, SAS token or identity"
    if code in ("BlobArchived", "BlobBeingRehydrated"):
        return ObjectArchived, (
            "the blob lies in the archive tier; move it to Hot or Cool first "
            "(az storage blob set-tier), which takes hours"
        )
    if status == 507 or code in ("AccountCapacityExceeded", "BlobCapacityExceeded"):
        return HostFull, shown
    if code in _DAMAGED:
        # The bytes were damaged on the way to the service: another try sends them again.
        return HostUnavailable, "the bytes that arrived do not have the MD5 that was sent with them"
    if code in _TRANSIENT_CODES or status in (408, 429) or status >= 500:
        return HostUnavailable, shown
    if code in _CONTAINER_GONE:
        return ContainerNotFound, "there is no such container; create it or correct the URL"
    if status == 404:
        return ObjectNotFound, "no such blob"
    if status in (401, 403):
        return AccessDenied, shown
    return HostError, shown


def _classify(exc: Exception) -> tuple[type[HostError], str]:
    status, code = status_of(exc), code_of(exc)
    if status is None or 200 <= status < 300:
        return _classify_silent(exc)
    if code == "InvalidOperation" and "contentmd5 doesn't match" in str(exc).lower():
        code = "Md5Mismatch"  # as the emulator says it
    return classify(status, code)


def _classify_silent(exc: Exception) -> tuple[type[HostError], str]:
    """Errors without an answer: connecting, sending, or an answer that broke off."""
    chain = list(_causes(exc))
    if any(_is_tls(error) for error in chain):
        return HostError, "the server's TLS certificate was not accepted; see the option ca_bundle"
    if any(isinstance(error, requests.exceptions.InvalidURL) for error in chain):
        return HostError, "the endpoint is not a valid URL"
    if type(exc).__name__ in ("CredentialUnavailableError", "ClientAuthenticationError"):
        return AccessDenied, "no Azure identity could be used; log in (az login) or give a key"
    text = " ".join(str(error) for error in chain).lower()
    if "name or service not known" in text or "name resolution" in text or "getaddrinfo" in text:
        return HostUnavailable, "the host name cannot be resolved"
    if "timed out" in text or "timeout" in text:
        return HostUnavailable, "no answer in time"
    if isinstance(exc, ServiceRequestError):
        return HostUnavailable, "cannot connect"
    if isinstance(exc, AzureError) and not isinstance(exc, HttpResponseError):
        return HostUnavailable, "the connection broke before the answer was complete"
    if isinstance(exc, HttpResponseError) and not any(_is_break(error) for error in chain):
        return IntegrityError, "the answer of the service cannot be read"
    return HostUnavailable, "the connection broke before the answer was complete"


def _hide_signatures(exc: BaseException) -> None:
    """Blot out SAS tokens in the texts of an error, which a traceback would show."""
    for error in _causes(exc):
        with contextlib.suppress(AttributeError, TypeError):  # a few make theirs read-only
            error.args = tuple(
                _SIGNATURE.sub(r"\1***", each) if isinstance(each, str) else each
                for each in error.args
            )
        message = getattr(error, "message", None)
        if isinstance(message, str) and _SIGNATURE.search(message):
            error.message = _SIGNATURE.sub(r"\1***", message)  # type: ignore[attr-defined]


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """`exc` and what lies under it, also where a library keeps it in an attribute or argument."""
    seen: set[int] = set()
    waiting: list[object] = [exc]
    while waiting:
        error = waiting.pop(0)
        if not isinstance(error, BaseException) or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        waiting += [getattr(error, "inner_exception", None), getattr(error, "reason", None)]
        waiting += [error.__cause__, error.__context__, *error.args]


def _is_tls(error: BaseException) -> bool:
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        # A connection that is cut in the middle of TLS is a connection that is cut.
        return "certificate" in str(error).lower() or "wrong version" in str(error).lower()
    return False


def _is_break(error: BaseException) -> bool:
    return isinstance(
        error,
        ConnectionError | TimeoutError | requests.ConnectionError | urllib3.exceptions.HTTPError,
    ) or type(error).__name__ in ("IncompleteReadError", "ServiceResponseError", "IncompleteRead")
