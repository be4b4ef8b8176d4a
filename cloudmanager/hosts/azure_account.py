"""Which Azure container, reached how, let in by what: URLs, options and credentials."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from cloudmanager.errors import ConfigurationError
from cloudmanager.hosts.options import read_options

__all__ = ["Account", "AzureOptions", "Container", "resolve"]

TIERS = ("Hot", "Cool", "Cold", "Archive")
_SDK_VARIABLES = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
_EMULATOR = {
    # The well-known account of every Azure storage emulator, published by Microsoft.
    "AccountName": "devstoreaccount1",
    "AccountKey": (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    ),
    "BlobEndpoint": "http://127.0.0.1:10000/devstoreaccount1",
}
_CONTAINER = re.compile(r"(?:[a-z0-9](?:-?[a-z0-9]){2,62}|\$root|\$web)\Z")


@dataclass(frozen=True, slots=True)
class AzureOptions:
    """What can be set for an Azure host. Secrets do not show in its repr.

    Attributes
    ----------
    account, account_key, connection_string, sas_token:
        How to get in. What is given here wins over the environment (`resolve`).
    endpoint_url:
        The blob service, for ``azure://`` URLs: ``https://account.blob.core.windows.net``, or
        ``http://127.0.0.1:10000/devstoreaccount1`` for an emulator.
    tier:
        ``Hot``, ``Cool``, ``Cold`` or ``Archive``; None leaves it to the account.
    ca_bundle:
        A PEM file with the certificates to trust instead of the system's.
    block_size:
        Bytes per block of a large blob: 16 MiB; more where 50,000 blocks would not do.
    concurrency:
        Blocks that one `put` sends at the same time: 4.
    aliases:
        Older URLs of the same place, whose locations this host owns as well.
    """

    account: str | None = None
    account_key: str | None = field(default=None, repr=False)
    connection_string: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None
    tier: str | None = None
    ca_bundle: str | None = None
    block_size: int = 16 * 1024 * 1024
    concurrency: int = 4
    aliases: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str, options: Mapping[str, Any]) -> AzureOptions:
        """Read the options of the host `name`.

        Raises
        ------
        ConfigurationError
            For an unknown option, or a value that does not fit; values are never shown, as
            they may be secrets in the wrong place.
        """
        values = read_options(cls, name, options, kind="an Azure", piece="block_size")
        if "tier" in values:
            values["tier"] = values["tier"].capitalize()
        made = cls(**values)
        if made.tier is not None and made.tier not in TIERS:
            raise ConfigurationError(f"host {name}: tier must be one of {', '.join(TIERS)}")
        if not 64 * 1024 <= made.block_size <= 4000 * 1024 * 1024:
            raise ConfigurationError(f"host {name}: block_size must be 64 KiB to 4000 MiB")
        if not 1 <= made.concurrency <= 64:
            raise ConfigurationError(f"host {name}: concurrency must be 1 to 64")
        if made.ca_bundle is not None and not os.path.isfile(os.path.expanduser(made.ca_bundle)):
            raise ConfigurationError(f"host {name}: there is no ca_bundle file {made.ca_bundle!r}")
        return made


@dataclass(frozen=True, slots=True)
class Container:
    """A container and a prefix in it, named in full.

    `endpoint` is the blob service without a slash at its end, with the account in the path
    where the server wants it there (emulators); `prefix` is ``""`` or ends with a slash.
    """

    endpoint: str
    name: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """The canonical URL; that of every object starts with it and a slash."""
        return self.location("").rstrip("/")

    def location(self, key: str) -> str:
        """The canonical location of `key` below the prefix."""
        path = quote(self.prefix + key, safe="/~", errors="surrogateescape")
        return f"azure+{self.endpoint}/{self.name}/{path}"

    def key(self, location: str, account: str | None) -> str | None:
        """The key below the prefix that a fully qualified location names, or None."""
        parts = urlsplit(location)
        if parts.query or parts.fragment or parts.username is not None:
            return None
        try:
            found = _split(location, account)
        except ConfigurationError:
            return None
        if found is None or found[:2] != (self.endpoint, self.name):
            return None
        path = found[2]
        return path[len(self.prefix) :] if path.startswith(self.prefix) else None


@dataclass(frozen=True, slots=True)
class Account:
    """How to get into a storage account. At most one of key and SAS token is set.

    With neither, azure-identity's default chain is used.
    """

    name: str
    key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)


def resolve(
    name: str, url: str, options: AzureOptions, environment: Mapping[str, str] | None = None
) -> tuple[Container, Account]:
    """Where the host `name` lies and what lets us in. No I/O.

    What the URL names wins over the options, these over the variables of the Azure command
    line: AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_KEY (or
    AZURE_STORAGE_ACCESS_KEY), AZURE_STORAGE_SAS_TOKEN. The variables are only used as a
    whole: when the options hold a credential, none of the environment's is looked at, and one
    that belongs to another account than the URL's is never sent to it.

    Raises
    ------
    ConfigurationError
        For a URL that names no container, or when nothing says which account, or nothing
        lets us in.
    """
    variables = _sdk_variables() if environment is None else environment
    given = options.account_key or options.sas_token or options.connection_string
    text = options.connection_string or ("" if given else _get(variables, _SDK_VARIABLES[0]))
    table = _read_connection_string(name, text) if text else {}
    account = options.account or table.get("AccountName")
    if not account and not given:
        account = _get(variables, "AZURE_STORAGE_ACCOUNT") or None

    if re.match(r"azure:", url, re.IGNORECASE):
        endpoint = options.endpoint_url or _endpoint_of(table)
        if not endpoint and account:
            endpoint = f"https://{account}.blob.core.windows.net"
        if not endpoint:
            raise ConfigurationError(
                f"host {name}: nothing says which storage account {url!r} is in; write "
                "azure+https://ACCOUNT.blob.core.windows.net/CONTAINER, give the option account, "
                "or set AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING"
            )
        short = urlsplit(url)
        endpoint = re.sub(r"^azure\+", "", endpoint.rstrip("/"), flags=re.IGNORECASE)
        full = f"azure+{endpoint}/{short.netloc}{short.path}"
    else:
        full = url
    if "?" in full or "#" in full or "@" in urlsplit(full).netloc:
        # A SAS in the URL would end in every location, log and dump.
        raise ConfigurationError(
            f"host {name}: an Azure URL takes no user, query or fragment; "
            "a SAS token goes into the option sas_token"
        )
    found = _split(full, account)
    if found is None or len(found[1]) > 63 or not _CONTAINER.match(found[1]):
        raise ConfigurationError(
            f"host {name}: the URL names no container; write azure://CONTAINER/PREFIX or "
            "azure+https://ACCOUNT.blob.core.windows.net/CONTAINER/PREFIX"
        )
    endpoint, bucket, path = found
    prefix = path.strip("/")
    container = Container(endpoint, bucket, f"{prefix}/" if prefix else "")
    named = _account_in(endpoint)
    return container, _account(name, named, account, options, table, variables)


def _account(
    name: str,
    named: str | None,
    account: str | None,
    options: AzureOptions,
    table: Mapping[str, str],
    variables: Mapping[str, str],
) -> Account:
    """Choose the credential for the account that the URL names (`named`), or `account`."""
    explicit = bool(options.account_key or options.sas_token or options.connection_string)
    if named and account and named != account:
        if explicit or options.account:
            raise ConfigurationError(
                f"host {name}: the URL is in account {named!r}, but the options are for {account!r}"
            )
        return _identity(name, named)
    whose = named or account
    if not whose:
        raise ConfigurationError(
            f"host {name}: nothing says which storage account this is; give the option account"
        )
    key = options.account_key or table.get("AccountKey")
    sas = options.sas_token or table.get("SharedAccessSignature")
    if not key and not sas and not explicit and not table:
        # A key or SAS in the environment without an account is meant for the one named.
        key = _get(variables, "AZURE_STORAGE_KEY") or _get(variables, "AZURE_STORAGE_ACCESS_KEY")
        sas = "" if key else _get(variables, "AZURE_STORAGE_SAS_TOKEN")
    if options.account_key:
        sas = None
    elif options.sas_token:
        key = None
    if key:
        return Account(whose, key=key)
    if sas:
        return Account(whose, sas_token=sas.strip().lstrip("?"))
    return _identity(name, whose)


def _identity(name: str, account: str) -> Account:
    import importlib.util

    if importlib.util.find_spec("azure") and importlib.util.find_spec("azure.identity"):
        return Account(account)
    raise ConfigurationError(
        f"host {name}: no credentials for the storage account {account!r}; give one of the options "
        "account_key, sas_token, connection_string, or set AZURE_STORAGE_CONNECTION_STRING, "
        "AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY, or AZURE_STORAGE_SAS_TOKEN; or install "
        "azure-identity to use `az login` and managed identities"
    )


def _sdk_variables() -> dict[str, str]:
    """The Azure command line's own variables, unchanged.

    The one place of the Azure host that looks at the environment: these are not settings of
    this program (config.py reads those), but the SDKs' and tools' way to pass credentials.
    """
    return {key: os.environ[key] for key in _SDK_VARIABLES if key in os.environ}


def _get(variables: Mapping[str, str], key: str) -> str:
    return variables.get(key, "").strip()


def _read_connection_string(name: str, text: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(
                f"host {name}: the connection string is not a list of KEY=VALUE; parted by ;"
            )
        table[key.strip()] = value.strip()
    if table.get("UseDevelopmentStorage", "").lower() == "true":
        table = {**_EMULATOR, **table}
    if not table.get("AccountName") and (endpoint := table.get("BlobEndpoint")):
        table["AccountName"] = _account_in(_normal_endpoint(endpoint) or "") or ""
    return table


def _endpoint_of(table: Mapping[str, str]) -> str:
    if endpoint := table.get("BlobEndpoint"):
        return endpoint
    if not table.get("AccountName"):
        return ""
    scheme = table.get("DefaultEndpointsProtocol", "https")
    suffix = table.get("EndpointSuffix", "core.windows.net")
    return f"{scheme}://{table['AccountName']}.blob.{suffix}"


def _split(url: str, account: str | None) -> tuple[str, str, str] | None:
    """A fully qualified URL as endpoint, container and unquoted path; None without a container."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in ("azure+http", "azure+https"):
        return None
    segments = parts.path.split("/")[1:]
    base = _normal_endpoint(f"{scheme.removeprefix('azure+')}://{parts.netloc}")
    if base is None:
        return None
    if segments and (_is_path_style(base) or segments[0] == account):
        base = f"{base}/{segments.pop(0)}"
    if not segments or not segments[0]:
        return None
    path = unquote_to_bytes("/".join(segments[1:])).decode("utf-8", "surrogateescape")
    return base, segments[0], path


def _normal_endpoint(url: str) -> str | None:
    """Scheme and host in lower case, without the default port or a slash at the end."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigurationError(f"not a valid URL: {url!r:.100}") from exc
    if not host:
        return None
    if ":" in host:
        host = f"[{host}]"
    default = {"http": 80, "https": 443}.get(parts.scheme)
    shown = host if port in (None, default) else f"{host}:{port}"
    return f"{parts.scheme.lower()}://{shown}{parts.path.rstrip('/')}"


def _is_path_style(endpoint: str) -> bool:
    """Whether the account is the first segment of the path: emulators, by address or bare name."""
    host = urlsplit(endpoint).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True


def _account_in(endpoint: str) -> str | None:
    """The account that an endpoint names: in its path, or as ``ACCOUNT.blob.…``."""
    parts = urlsplit(endpoint)
    if path := parts.path.strip("/"):
        return path
    account, dot, rest = (parts.hostname or "").partition(".")
    return account if dot and rest.startswith("blob.") else None
