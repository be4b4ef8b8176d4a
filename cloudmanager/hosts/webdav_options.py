"""What can be set for a WebDAV host."""

from __future__ import annotations

import math
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudmanager.errors import ConfigurationError
from cloudmanager.hosts.base import TIME_LIMIT
from cloudmanager.hosts.options import read_options

__all__ = ["WebdavOptions"]

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# RFC 6750 section 2.1: what a bearer token is made of.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*\Z")


@dataclass(frozen=True, slots=True)
class WebdavOptions:
    """Options of a WebDAV host. Secrets do not show in its repr.

    Attributes
    ----------
    user, password:
        Sent as HTTP Basic authentication with every request; both or none.
    token:
        Sent as a bearer token instead.
    ca_bundle, verify_tls:
        A PEM file to trust instead of the system's certificates; whether to verify at all.
    time_limit:
        Seconds the server may be silent (connect, or between two bytes): 20.
    aliases:
        Older URLs of the same place, whose locations this host owns as well.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    verify_tls: bool = True
    time_limit: float = TIME_LIMIT
    aliases: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str, options: Mapping[str, Any]) -> WebdavOptions:
        """Read the options of the host `name`.

        Raises
        ------
        ConfigurationError
            For an unknown option, or a value that does not fit; values are never shown, as
            they may be secrets in the wrong place.
        """
        values = read_options(
            cls, name, options, kind="a WebDAV", piece="", untyped={"verify_tls", "time_limit"}
        )
        verify = values.get("verify_tls", True)
        if isinstance(verify, str):
            verify = _TRUTH.get(verify.strip().lower())
        if not isinstance(verify, bool):
            raise ConfigurationError(f"host {name}: verify_tls must be true or false")
        values["verify_tls"] = verify
        values["time_limit"] = _seconds(name, values.get("time_limit", TIME_LIMIT))
        made = cls(**values)
        made._check(name)
        return made

    def _check(self, name: str) -> None:
        if (self.user is None) != (self.password is None):
            raise ConfigurationError(f"host {name}: user and password must be given together")
        if self.token is not None and self.user is not None:
            raise ConfigurationError(f"host {name}: give either a token or user and password")
        # RFC 7617 section 2: the first colon ends the user's name.
        if self.user is not None and (":" in self.user or _CONTROL.search(self.user)):
            raise ConfigurationError(f"host {name}: user must have no colon and be on one line")
        if self.password is not None and _CONTROL.search(self.password):
            raise ConfigurationError(f"host {name}: password must be on one line")
        if self.token is not None and not _TOKEN.match(self.token):
            raise ConfigurationError(f"host {name}: token is no bearer token")
        if self.ca_bundle is not None and not os.path.isfile(os.path.expanduser(self.ca_bundle)):
            raise ConfigurationError(f"host {name}: there is no ca_bundle file {self.ca_bundle!r}")

    @property
    def authorization(self) -> str | None:
        """The header that says who we are; a secret."""
        if self.token is not None:
            return f"Bearer {self.token}"
        if self.user is None:
            return None
        return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")

    @property
    def verify(self) -> bool | str:
        """What requests takes for `ca_bundle` and `verify_tls`."""
        if not self.verify_tls:
            return False
        return os.path.expanduser(self.ca_bundle) if self.ca_bundle else True


def _seconds(name: str, value: object) -> float:
    wrong = ConfigurationError(f"host {name}: time_limit must be a number of seconds above 0")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    try:
        seconds = float(value)
    except (ValueError, OverflowError) as exc:
        raise wrong from exc
    if not 0 < seconds < math.inf:
        raise wrong
    return seconds
