"""Reading what the hosts' option classes have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from cloudmanager.errors import ConfigurationError
from cloudmanager.model import parse_bytes

__all__ = ["read_options"]


def read_options(
    made: type[Any],
    name: str,
    options: Mapping[str, Any],
    *,
    kind: str,
    piece: str,
    untyped: Collection[str] = (),
) -> dict[str, Any]:
    """The options of the host `name` as arguments of the dataclass `made`.

    `kind` names the kind of host in messages, with its article. `piece` is the option that
    holds a size in bytes. ``concurrency`` is a number, ``aliases`` one or several URLs, those
    in `untyped` are left as they are; all others are texts.

    Raises
    ------
    ConfigurationError
        For an unknown option, or a value that does not fit; values are never shown, as they
        may be secrets in the wrong place.
    """
    known = {each.name for each in fields(made)}
    if unknown := sorted(set(options) - known):
        raise ConfigurationError(
            f"host {name}: unknown option {', '.join(unknown)}; {kind} host takes: "
            f"{', '.join(sorted(known))}"
        )
    values: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    for key in known - {piece, "concurrency", "aliases", *untyped}:
        if key in values and (not isinstance(values[key], str) or not values[key].strip()):
            raise ConfigurationError(f"host {name}: {key} must be a text that is not empty")
    try:
        if piece in values:
            values[piece] = parse_bytes(values[piece])
        if "concurrency" in values:
            values["concurrency"] = int(values["concurrency"])
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"host {name}: {piece} and concurrency must be numbers") from exc
    aliases = values.get("aliases", ())
    values["aliases"] = (aliases,) if isinstance(aliases, str) else tuple(aliases)
    return values
