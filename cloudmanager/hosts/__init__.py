"""Hosts: where the bytes live. One module per kind of host; this is their registry.

A host is made from a URL and options by `open_host`. The kinds that are built in are named
here and imported when they are first used; others announce themselves through the
entry-point group ``cloudmanager.hosts``: the entry's name is a URL scheme, its value a
callable ``factory(name, url, options) -> Host``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cloudmanager.errors import ConfigurationError, UnknownHost
from cloudmanager.hosts.base import Host

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Host", "factory_for", "open_host", "schemes"]

Factory = Callable[[str, str, Mapping[str, Any]], Host]

_BUILT_IN = {
    "file": "cloudmanager.hosts.folder:open_folder",
    "s3": "cloudmanager.hosts.s3:open_s3",
    "s3+https": "cloudmanager.hosts.s3:open_s3",
    "s3+http": "cloudmanager.hosts.s3:open_s3",
    "azure": "cloudmanager.hosts.azure:open_azure",
    "azure+https": "cloudmanager.hosts.azure:open_azure",
    "azure+http": "cloudmanager.hosts.azure:open_azure",
    "webdav+https": "cloudmanager.hosts.webdav:open_webdav",
    "webdav+http": "cloudmanager.hosts.webdav:open_webdav",
    "http": "cloudmanager.hosts.http:open_http",
    "https": "cloudmanager.hosts.http:open_http",
    "command": "cloudmanager.hosts.command:open_command",
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
GROUP = "cloudmanager.hosts"


def schemes() -> list[str]:
    """Every URL scheme that a host can be made from."""
    return sorted({*_BUILT_IN, *(entry.name for entry in _entry_points())})


def scheme_of(url: str) -> str:
    """The scheme of a host's URL; a path (absolute, or starting with ``.`` or ``~``) is ``file``.

    Raises
    ------
    UnknownHost
        For anything else: an unknown scheme never silently means a local folder.
    """
    if url.startswith(("/", "./", "../", "~")) or url in (".", ".."):
        return "file"
    match = _SCHEME.match(url)
    if match is None:
        raise UnknownHost(
            f"{url!r} is neither a configured host, nor a URL, nor an absolute path; "
            "`cloudmanager host ls` shows the configured hosts"
        )
    return match.group(1).lower()


def factory_for(scheme: str) -> Factory:
    """The callable that makes hosts of this scheme."""
    target = _BUILT_IN.get(scheme)
    if target is not None:
        module, _, attribute = target.partition(":")
        factory: Factory = getattr(importlib.import_module(module), attribute)
        return factory
    for entry in _entry_points(name=scheme):
        loaded: Factory = entry.load()
        return loaded
    raise UnknownHost(f"no host of kind {scheme!r}; known are: {', '.join(schemes())}")


def _entry_points(name: str = "") -> Iterator[EntryPoint]:
    # Only who names a kind that is not built in has to wait for this module.
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        if name in ("", entry.name):
            yield entry


def open_host(
    url: str, options: Mapping[str, Any] | None = None, *, name: str | None = None
) -> Host:
    """Make a host from its URL. No network I/O happens here.

    `name` defaults to the URL without user name, password and query.

    Raises
    ------
    UnknownHost
        For a scheme that nobody knows.
    ConfigurationError
        For an option or URL that does not fit.
    """
    scheme = scheme_of(url)
    options = dict(options or {})
    host = factory_for(scheme)(name or default_name(url), url, options)
    if not isinstance(host, Host):
        raise ConfigurationError(f"the factory for {scheme!r} did not return a Host")
    return host


def default_name(url: str) -> str:
    """A URL as a name that is safe to log: no user name, password, query or fragment."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return re.sub(r"//[^/]*@", "//", bare).rstrip("/") or "/"
