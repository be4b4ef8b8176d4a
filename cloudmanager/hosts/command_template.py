"""Command lines with placeholders, and what may be shown of what programs say."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping

from cloudmanager.errors import ConfigurationError

__all__ = ["Template", "one_line", "safe_name"]

LONGEST_NAME = 255
"""Bytes of a file name that file systems take."""

_PIECE = re.compile(r"(\{\{|\}\}|\{\w*\}|[{}])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_OPTION = re.compile(
    r"-[aupH]\Z|--?[\w-]*(?:auth|user|pass|secret|token|key|cred|header|cookie|login)[\w-]*\Z",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 3
# In this order: a header's value may be two words, which the others would leave half of.
_CREDENTIALS = (
    (re.compile(r"(authorization\s*[:=]\s*)(?:\w+\s+)?\S+", re.IGNORECASE), r"\1***"),
    (
        re.compile(
            r"((?:password|passwd|passphrase|secret|token|api[-_]?key|access[-_]?key|signature)"
            r"[\"']?\s*[:=]\s*)\S+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"(://)[^/\s@]+(?:@[^/\s@]+)*@"), r"\1***@"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s?#]+[?#])\S+", re.IGNORECASE), r"\1***"),
)
_SHOWN = 300


class Template:
    """A command line that was split into arguments once, with ``{placeholders}`` in them.

    A value is put into its argument and never looked at again: it can neither become several
    arguments nor bring placeholders of its own. ``{{`` and ``}}`` stand for braces.
    """

    def __init__(self, arguments: tuple[tuple[str, ...], ...]) -> None:
        self._arguments = arguments
        self.secrets = tuple(_secrets(arguments))
        """Literal arguments that look like credentials, to be struck out of messages."""

    @classmethod
    def parse(cls, about: str, value: object, *, known: Collection[str]) -> Template:
        """Read a text (quoted as for a shell) or a list of arguments.

        Raises
        ------
        ConfigurationError
            For an unknown placeholder, a lone brace or quote, or no program. The command line
            itself is never shown: there may be a password in it.
        """
        words: list[str]
        if isinstance(value, str):
            try:
                words = shlex.split(value)
            except ValueError as exc:
                raise ConfigurationError(f"{about} has a quote without its partner") from exc
        elif isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
            words = list(value)
        else:
            raise ConfigurationError(f"{about} must be a command line or a list of texts")
        if not words or not words[0] or any("\0" in word for word in words):
            raise ConfigurationError(f"{about} must name a program")
        arguments = tuple(tuple(filter(None, _PIECE.split(word))) for word in words)
        for piece in (piece for argument in arguments for piece in argument):
            if piece in ("{", "}"):
                raise ConfigurationError(
                    f"{about} has a lone {piece!r}; write it as {piece * 2!r} to mean a brace"
                )
            if (name := _placeholder(piece)) is not None and name not in known:
                shown = ", ".join(f"{{{each}}}" for each in sorted(known)) or "none"
                raise ConfigurationError(
                    f"{about} has the unknown placeholder {piece}; it may have: {shown}"
                )
        if any(_placeholder(piece) is not None for piece in arguments[0]):
            raise ConfigurationError(f"{about}: the program itself cannot be a placeholder")
        return cls(arguments)

    @property
    def program(self) -> str:
        """The program, a leading ``~`` replaced."""
        return os.path.expanduser(_fill(self._arguments[0], {}))

    def uses(self, name: str) -> bool:
        """Whether the placeholder `name` occurs."""
        return any(_placeholder(piece) == name for each in self._arguments for piece in each)

    def fill(self, values: Mapping[str, str]) -> list[str]:
        """The arguments for one run, the program first."""
        return [self.program, *(_fill(argument, values) for argument in self._arguments[1:])]

    def __repr__(self) -> str:
        return f"<Template {os.path.basename(self.program)}>"


def safe_name(filename: str | None, otherwise: str) -> str:
    """A file's name as it can be given to any program, or `otherwise` when there is none.

    It is one path segment of at most 255 bytes. A leading ``-`` becomes ``_``, so that it is
    no option; so do slashes and control characters: a name with a newline that a program
    repeats on its output could pass for the line with the URL.
    """
    name = _CONTROL.sub("_", filename or "").replace("/", "_")
    if name in ("", ".", ".."):
        return otherwise
    if name.startswith("-"):
        name = "_" + name[1:]
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:  # half a surrogate pair, which no file system gave us
        raw = name.encode("utf-8", "replace")
    if len(raw) > LONGEST_NAME:
        stem, dot, suffix = raw.rpartition(b".")
        end = dot + suffix if stem and len(suffix) < 32 else b""
        # What a cut leaves of a character is dropped; bytes that never were UTF-8 stay.
        kept = raw[: LONGEST_NAME - len(end)]
        while kept and 0x80 <= raw[len(kept)] < 0xC0 and len(kept) > LONGEST_NAME - len(end) - 4:
            kept = kept[:-1]
        raw = kept + end
    return os.fsdecode(raw)


def one_line(said: bytes, secrets: Collection[str] = ()) -> str:
    """The last lines of a program's output as one short line without secrets; ``""`` for none."""
    lines = re.split(r"[\r\n]+", said.decode("utf-8", "replace"))
    kept = [" ".join(_CONTROL.sub(" ", line).split()) for line in lines]
    text = " | ".join([line for line in kept if line][-3:])
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= _SHOWN else "…" + text[-_SHOWN:]


def _placeholder(piece: str) -> str | None:
    if len(piece) >= 2 and piece[0] == "{" and piece[-1] == "}":
        return piece[1:-1]
    return None


def _fill(argument: tuple[str, ...], values: Mapping[str, str]) -> str:
    filled = []
    for piece in argument:
        name = _placeholder(piece)
        if name is not None:
            filled.append(values[name])
        else:
            filled.append(piece[0] if piece in ("{{", "}}") else piece)
    return "".join(filled)


def _secrets(arguments: tuple[tuple[str, ...], ...]) -> list[str]:
    found: list[str] = []
    before = ""
    for argument in arguments[1:]:
        literal = "" if any(_placeholder(p) is not None for p in argument) else _fill(argument, {})
        option, equals, value = literal.partition("=")
        if equals and _SECRET_OPTION.match(option):
            found += [value, *value.split(":", 1)]
        elif literal and not literal.startswith("-") and _SECRET_OPTION.match(before):
            found += [literal, *re.split(r"[:=]\s*", literal, maxsplit=1)]
        before = literal
    return [each for each in found if len(each) >= _SHORTEST_SECRET]
