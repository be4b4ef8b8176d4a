"""The SDK's client, set up for many threads, our time limits and our retry policy."""

from __future__ import annotations

import io
import logging
import os
from typing import Any

import requests
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerClient
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from cloudmanager.hosts.azure_account import Account, AzureOptions, Container

__all__ = ["make_client"]

_CONNECTIONS = 64
_READ = 4 * 1024 * 1024
_SEND = 256 * 1024


def make_client(
    container: Container, account: Account, options: AzureOptions, time_limit: float
) -> ContainerClient:
    """A client for one container. No I/O.

    `time_limit` in seconds is the longest silence: to connect, or between two bytes.
    """
    # The SDK logs every request at INFO. A user who wants that can still set its logger.
    logger = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    session = requests.Session()
    adapter = _Adapter()
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    # Proxies and REQUESTS_CA_BUNDLE are looked up once: requests would go through the whole
    # environment, and look for a netrc, for each request, a fifth of the time of a small one.
    around = session.merge_environment_settings(container.endpoint, {}, False, None, None)
    session.trust_env = False
    session.proxies.update(around["proxies"])
    verify = True if around["verify"] is None else around["verify"]
    if options.ca_bundle is not None:
        verify = os.path.expanduser(options.ca_bundle)
    transport = RequestsTransport(
        session=session,
        session_owner=True,
        connection_timeout=time_limit,
        read_timeout=time_limit,
        connection_verify=verify,
        use_env_settings=False,
    )
    service = BlobServiceClient(
        container.endpoint,
        credential=_credential(account),
        transport=transport,
        retry_total=0,  # the house's own policy decides
        max_single_get_size=_READ,
        max_chunk_get_size=_READ,
        # Ours decides what goes up in blocks; the SDK would keep none of it.
        max_single_put_size=256 * 1024 * 1024,
    )
    return service.get_container_client(container.name)


def _credential(account: Account) -> Any:
    if account.key is not None:
        return {"account_name": account.name, "account_key": account.key}
    if account.sas_token is not None:
        return account.sas_token
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


class _Adapter(HTTPAdapter):
    """Connections for many threads, without retries, sending large bodies in pieces.

    Python applies a socket's time limit to the whole of one `sendall`: a body handed over as
    one piece of 16 MiB would fail on every line slower than 7 Mbit/s. In pieces the limit
    means what it says, silence.
    """

    def __init__(self) -> None:
        super().__init__(
            pool_connections=4,
            pool_maxsize=_CONNECTIONS,
            max_retries=Retry(total=False, redirect=False, raise_on_status=False),
        )

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, blocksize=_SEND, **kwargs)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if isinstance(request.body, bytes) and len(request.body) > _SEND:
            request.body = io.BytesIO(request.body)  # type: ignore[assignment]
        return super().send(request, *args, **kwargs)
