"""Settings: where they come from and what they mean. Only this module reads the environment.

For each setting: the flag (an argument of `load`), then the environment variable
``CLOUDMANAGER_…``, then ``config.toml``, then the default. The SDKs read their own
variables (``AWS_…``, ``AZURE_…``) themselves.

::

    # ~/.config/cloudmanager/config.toml
    capacity = "20GiB"
    redundancy = 2

    [hosts.archive]                       # the order here is the order of preference
    url = "s3://bucket/prefix"
    region = "eu-central-1"
    secret_access_key = { file = "~/.secrets/s3" }  # or { env = "NAME" }, { command = ["pass", …] }

    [hosts.nas]
    url = "/mnt/nas/pool"
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudmanager.errors import ConfigurationError, UnknownHost
from cloudmanager.hosts import Host, default_name, open_host, scheme_of
from cloudmanager.model import parse_bytes

__all__ = [
    "DEFAULT_CAPACITY",
    "HostSetting",
    "Settings",
    "config_path",
    "hosts_of",
    "load",
    "open_hosts",
    "redact",
]

DEFAULT_CAPACITY = 10 * 1024**3
"""Bytes of cache when nobody says otherwise: 10 GiB."""

_KEYS = {"database", "storage", "capacity", "redundancy", "hosts", "jobs", "bwlimit"}
_SECRET = re.compile(
    r"secret|password|passphrase|token|credential|(^|_)key$|connection_string|^headers$",
    re.IGNORECASE,
)
_NOT_SECRET = {"access_key_id", "sse_kms_key_id"}
_SOURCES = ("env", "file", "command")


@dataclass(frozen=True, slots=True)
class HostSetting:
    """One host as it was configured: name, URL, and options with the sources of their secrets."""

    name: str
    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def open(self) -> Host:
        """Make the host. Secrets are fetched now, and only now."""
        options = {key: _resolve(self.name, key, value) for key, value in self.options.items()}
        return open_host(self.url, options, name=self.name)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pool needs to open. `capacity` in bytes, `bwlimit` in bytes a second (None: no
    limit); `sources` says where each value came from."""

    database: str
    storage: str
    capacity: int
    hosts: tuple[HostSetting, ...]
    redundancy: int | None
    jobs: int | None
    bwlimit: int | None
    path: Path
    sources: Mapping[str, str]


def config_path() -> Path:
    """Where ``config.toml`` is looked for when nobody names another."""
    named = os.environ.get("CLOUDMANAGER_CONFIG")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("cloudmanager", appauthor=False)) / "config.toml"


def data_folder() -> Path:
    """The user's data directory, where database, cache and the embedded host lie by default."""
    import platformdirs

    return Path(platformdirs.user_data_dir("cloudmanager", appauthor=False))


def load(
    *,
    config: str | os.PathLike[str] | None = None,
    database: str | None = None,
    storage: str | None = None,
    capacity: int | str | None = None,
    hosts: Sequence[str] = (),
    redundancy: int | str | None = None,
    bwlimit: int | str | None = None,
) -> Settings:
    """Put the settings together: arguments first, then environment, file and default.

    Raises
    ------
    ConfigurationError
        For a named file that is not there or not TOML, an unknown key, a value that does not
        fit.
    UnknownHost
        For a host that is neither configured nor a URL nor a path.
    """
    path = Path(config).expanduser() if config is not None else config_path()
    explicit = config is not None or "CLOUDMANAGER_CONFIG" in os.environ
    table = _read(path, required=explicit)
    sources: dict[str, str] = {}

    def pick(key: str, given: Any, default: Any) -> Any:
        variable = f"CLOUDMANAGER_{key.upper()}"
        if given is not None and given != ():
            sources[key] = "flag"
            return given
        if os.environ.get(variable):
            sources[key] = variable
            return os.environ[variable]
        if key in table:
            sources[key] = str(path)
            return table[key]
        sources[key] = "default"
        return default

    data = data_folder()
    capacity_value = pick("capacity", capacity, DEFAULT_CAPACITY)
    redundancy_value = pick("redundancy", redundancy, None)
    jobs_value = pick("jobs", None, None)
    bwlimit_value = pick("bwlimit", bwlimit, 0)
    known = _hosts_of(table.get("hosts", {}), path) or {
        "local": HostSetting("local", str(data / "files"), {"create": True})
    }
    wanted = pick("hosts", tuple(hosts), None)
    if isinstance(wanted, str):
        wanted = tuple(wanted.split())
    if sources["hosts"] in ("default", str(path)):
        chosen = tuple(known.values())
    else:
        chosen = tuple(_choose(name, known) for name in wanted)
    _refuse_twins(chosen)
    return Settings(
        database=_place("database", pick("database", database, str(data / "catalog.sqlite3"))),
        storage=_place("storage", pick("storage", storage, str(data / "cache"))),
        capacity=_number("capacity", capacity_value, sources["capacity"], parse_bytes),
        hosts=chosen,
        redundancy=_positive("redundancy", redundancy_value, sources["redundancy"]),
        jobs=_positive("jobs", jobs_value, sources["jobs"]),
        bwlimit=_number("bwlimit", bwlimit_value, sources["bwlimit"], parse_bytes) or None,
        path=path,
        sources=sources,
    )


def open_hosts(settings: Sequence[HostSetting]) -> list[Host]:
    """Make all the hosts, in order of preference."""
    return [setting.open() for setting in settings]


def hosts_of(hosts: Sequence[Host | str | os.PathLike[str]] | None) -> list[Host]:
    """Host objects as they are, names and URLs through the configuration; None: all configured.

    Raises
    ------
    ConfigurationError
        For an empty list, or a text where a list should be.
    """
    if hosts is None:
        return open_hosts(load().hosts)
    if not hosts:
        raise ConfigurationError("no hosts given: name at least one, or None for those configured")
    if isinstance(hosts, str | os.PathLike):
        raise ConfigurationError("hosts must be a list of hosts, URLs or names")
    opened: list[Host] = []
    for host in hosts:
        if isinstance(host, Host):
            opened.append(host)
        else:
            opened.extend(open_hosts(load(hosts=[os.fspath(host)]).hosts))
    return opened


def redact(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they may be shown: a secret's value becomes ``***``, its source stays."""
    shown: dict[str, Any] = {}
    for key, value in options.items():
        secret = _SECRET.search(key) is not None and key not in _NOT_SECRET
        if secret and not _is_source(value):
            shown[key] = "***"
        else:
            shown[key] = value
    return shown


def redact_url(url: str) -> str:
    """A URL as it may be shown: without password, and with the values of its query hidden."""
    url = re.sub(r"(//[^/@:]*):[^/]*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&#]*=)[^&#]*", r"\1***", url)


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError as exc:
        if required:
            raise ConfigurationError(f"there is no configuration file {str(path)!r}") from exc
        return {}
    except OSError as exc:
        raise ConfigurationError(f"cannot read {str(path)!r}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{str(path)!r} is not valid TOML: {exc}") from exc
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise ConfigurationError(
            f"{str(path)!r}: unknown setting {', '.join(unknown)}; "
            f"known are: {', '.join(sorted(_KEYS))}"
        )
    return table


def _hosts_of(table: Any, path: Path) -> dict[str, HostSetting]:
    if not isinstance(table, dict):
        raise ConfigurationError(f"{str(path)!r}: hosts must be tables: [hosts.NAME]")
    hosts = {}
    for name, options in table.items():
        url = options.get("url") if isinstance(options, dict) else None
        if not isinstance(url, str) or not url:
            raise ConfigurationError(f"{str(path)!r}: [hosts.{name}] needs a url")
        scheme_of(url)
        hosts[name] = HostSetting(name, url, {k: v for k, v in options.items() if k != "url"})
    return hosts


def _choose(name: str, known: Mapping[str, HostSetting]) -> HostSetting:
    if name in known:
        return known[name]
    try:
        scheme_of(name)
    except UnknownHost as exc:
        names = ", ".join(known) or "none"
        raise UnknownHost(
            f"{name!r} is neither a configured host (configured: {names}), nor a URL, nor a path "
            "that starts with / or ./"
        ) from exc
    return HostSetting(default_name(name), name, {})


def _refuse_twins(hosts: Sequence[HostSetting]) -> None:
    seen: set[str] = set()
    for host in hosts:
        if host.name in seen:
            raise ConfigurationError(f"host {host.name!r} is named twice")
        seen.add(host.name)


def _place(key: str, value: Any) -> str:
    """A path with its ``~`` replaced, or a URL as it is."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigurationError(f"{key} must be a text that is not empty")
    return os.path.expanduser(os.fspath(value))


def _number(key: str, value: Any, source: str, parse: Any) -> int:
    try:
        return int(parse(value))
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"{key} (from {source}): {exc}") from exc


def _positive(key: str, value: Any, source: str) -> int | None:
    if value is None:
        return None
    number = _number(key, value, source, int)
    if number < 1:
        raise ConfigurationError(f"{key} (from {source}) must be at least 1, not {number}")
    return number


def _is_source(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _SOURCES


def _resolve(host: str, key: str, value: Any) -> Any:
    """Replace ``{env|file|command = …}`` by what it names."""
    if not _is_source(value):
        if isinstance(value, Mapping):  # a table, such as the headers of an http host
            return {name: _resolve(host, f"{key}.{name}", each) for name, each in value.items()}
        return value
    kind, where = next(iter(value.items()))
    about = f"host {host}: {key}"
    if kind == "env":
        if where not in os.environ:
            raise ConfigurationError(f"{about}: the environment variable {where} is not set")
        return os.environ[where]
    if kind == "file":
        try:
            return Path(str(where)).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"{about}: cannot read the file {where!r}") from exc
    if not (isinstance(where, list) and where and all(isinstance(part, str) for part in where)):
        raise ConfigurationError(f'{about}: command must be a list such as ["pass", "show", "s3"]')
    try:
        # Without our standard input: `upload -` reads its file there, and a command such as ssh
        # would quietly swallow the beginning of it.
        done = subprocess.run(
            where,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        # Never the output: it may hold the secret.
        raise ConfigurationError(f"{about}: the command {where[0]!r} failed") from exc
    return done.stdout.strip()
