"""Reading blobs through obstore, which is several times faster than the SDK.

Measured against Azurite on two cores: 256 MiB in one stream 0.3 to 0.4 s, the SDK 2.0 to 2.2 s;
1,000 blobs of 4 KiB with 16 threads 0.7 s and 0.15 s of CPU, the SDK 1.7 s and 1.6 s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore

from cloudmanager.errors import AccessDenied, HostError, HostUnavailable, IntegrityError
from cloudmanager.hosts.azure_account import Account, AzureOptions, Container
from cloudmanager.hosts.azure_errors import classify
from cloudmanager.hosts.obstore_errors import ObstoreFault, fault_of

__all__ = ["BlobReader", "can_read"]

_BLOCK = 1024 * 1024
_NEVER = timedelta(days=7)
# What obstore's own path type does not let through unchanged; the SDK reads those.
_ODD = re.compile(r"//|^/|/$|[\x00-\x1f\x7f]")


def can_read(blob_name: str) -> bool:
    """Whether obstore can name this blob."""
    return not _ODD.search(blob_name)


class BlobReader:
    """Reads the blobs of one container. Thread-safe; not to be used in a forked child.

    Only its sync calls are used: they release the GIL and never aborted the interpreter at
    its exit, as the async ones did.
    """

    def __init__(
        self,
        host: str,
        container: Container,
        account: Account,
        options: AzureOptions,
        time_limit: float,
    ) -> None:
        self._host = host
        self._pid = os.getpid()
        client: dict[str, Any] = {
            "allow_http": container.endpoint.startswith("http:"),
            "connect_timeout": timedelta(seconds=time_limit),
            # Silence between two reads; `timeout` would end a long download in the middle.
            "read_timeout": timedelta(seconds=time_limit),
            "timeout": _NEVER,
            "pool_max_idle_per_host": "64",
        }
        if options.ca_bundle is not None:
            client["root_certificate"] = Path(options.ca_bundle).expanduser().read_bytes()
        # Everything that obstore would else look for in the environment is given: a variable
        # meant for another program must not decide where we read, or as whom.
        self._store = AzureStore(
            container.name,
            account_name=account.name,
            endpoint=container.endpoint,
            use_emulator=False,
            skip_signature=False,
            use_azure_cli=False,
            credential_provider=_provider(account),
            client_options=client,  # type: ignore[arg-type]
            retry_config={"max_retries": 0},
        )

    def read(
        self, blob_name: str, location: str, offset: int, length: int | None
    ) -> Iterator[bytes]:
        """The bytes of a blob from `offset`, `length` of them (more than 0) or all.

        Raises
        ------
        HostError
            In our terms, at the first `next` at the latest; an answer of another length than
            it announced, or of another part than asked for, never ends quietly.
        """
        if os.getpid() != self._pid:
            # Its threads stayed in the parent: the call would wait for ever.
            raise HostError(
                "the host was opened before this process was forked; open it again, or start "
                "processes with spawn",
                host=self._host,
                operation="get",
                location=location,
            )
        options: Any = None
        if length is not None:
            options = {"range": (offset, offset + length)}
        elif offset:
            options = {"range": {"offset": offset}}
        try:
            found = obstore.get(self._store, blob_name, options=options)
            start, end = found.range
            missing = end - start
            for block in found.stream(min_chunk_size=_BLOCK):
                missing -= len(block)
                yield bytes(block)
        except (BaseError, OSError, ValueError) as exc:
            fault = fault_of(exc)
            # It starts past the end; at the very end the emulator says 206 and obstore objects.
            if (fault is not None and fault.status == 416) or "StartTooLarge" in str(exc):
                return
            raise self._error(_classify(fault, exc), location) from exc
        if missing:
            what = (
                f"ended {missing} bytes early" if missing > 0 else f"is {-missing} bytes too long"
            )
            kind = (HostUnavailable if missing > 0 else IntegrityError), f"the answer {what}"
            raise self._error(kind, location)

    def _error(self, found: tuple[type[HostError], str], location: str) -> HostError:
        kind, message = found
        return kind(message, host=self._host, operation="get", location=location)


def _provider(account: Account) -> Callable[[], Any]:
    if account.key is not None:
        return lambda: {"access_key": account.key, "expires_at": None}
    if account.sas_token is not None:
        return lambda: {"sas_token": account.sas_token, "expires_at": None}
    from azure.identity import DefaultAzureCredential

    identity = DefaultAzureCredential()

    def token() -> dict[str, object]:
        got = identity.get_token("https://storage.azure.com/.default")
        return {"token": got.token, "expires_at": datetime.fromtimestamp(got.expires_on, UTC)}

    return token


def _classify(fault: ObstoreFault | None, exc: Exception) -> tuple[type[HostError], str]:
    """What an error of obstore means here."""
    if fault is not None and fault.status is not None:
        return classify(fault.status, fault.code)
    if fault is not None and fault.transport in _TRANSPORTS:
        return _TRANSPORTS[fault.transport]
    # One 200 for a range, or the Content-Range of another one.
    if "NotPartial" in str(exc) or "UnexpectedRange" in str(exc):
        return IntegrityError, "the server sends another part than asked"
    return HostError, "the answer of the service cannot be read"


_TRANSPORTS: dict[str, tuple[type[HostError], str]] = {
    "connect": (HostUnavailable, "cannot connect"),
    "dns": (HostUnavailable, "the host name cannot be resolved"),
    "timeout": (HostUnavailable, "no answer in time"),
    "broken": (HostUnavailable, "the connection broke before the answer was complete"),
    "tls": (
        HostError,
        "the server's TLS certificate was not accepted; see the option ca_bundle",
    ),
    "credentials": (
        AccessDenied,
        "no Azure identity could be used; log in (az login) or give a key",
    ),
}
