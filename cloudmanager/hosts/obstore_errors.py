"""What an exception of obstore means: the one place that reads its messages.

obstore's exceptions carry nothing but a text. It starts with one line for people, which
holds the HTTP status and the server's answer, and ends with a dump of the Rust error, which
holds the kind of a failure that came without an answer. The classes alone do not do: most
are GenericError, "not found" is the built-in FileNotFoundError and also stands for a missing
bucket, and AlreadyExistsError is any 409. obstore is pinned to one minor version, and the
tests provoke every message that is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ObstoreFault", "fault_of"]

_DUMP = "\n\nDebug source:\n"
_STATUS = re.compile(r"Server returned (?:non-2xx|error) status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9_.-]+)\s*</Code>")
_TEXT = re.compile(r"<Message>([^<]*)</Message>")
_KIND = re.compile(r"HttpError \{\s*kind: ([A-Za-z]+)")
_TLS = re.compile(
    r"\b(?:InvalidCertificate|InvalidMessage|AlertReceived|PeerIncompatible|PeerMisbehaved"
    r"|NoCertificatesPresented|UnsupportedNameType|General)\b"
)
_TRANSPORT = {
    "Connect": "connect",
    "Timeout": "timeout",
    "Interrupted": "broken",
    "Request": "broken",  # the connection ended before there was an answer
    "Decode": "garbled",
    "Unknown": "garbled",  # what came is no HTTP
}


@dataclass(frozen=True, slots=True)
class ObstoreFault:
    """A failure, taken apart.

    `status`, `code` and `text` are the server's answer (None and ``""`` where there is none).
    Without an answer `transport` says why: ``connect``, ``dns``, ``tls``, ``timeout``,
    ``broken``, ``garbled``, ``redirect``, ``credentials``; ``""`` when nobody knows.
    """

    status: int | None = None
    code: str = ""
    text: str = ""
    transport: str = ""


def fault_of(exc: BaseException) -> ObstoreFault | None:
    """What `exc` means, or None when it is not from obstore."""
    from obstore.exceptions import BaseError

    whole = str(exc)
    # Some failures come as built-ins; only obstore's end with its dump.
    if not isinstance(exc, BaseError) and _DUMP not in whole:
        return None
    shown, _, dump = whole.partition(_DUMP)
    if match := _STATUS.search(shown):
        answer = shown[match.end() :]
        code, text = _CODE.search(answer), _TEXT.search(answer)
        return ObstoreFault(
            status=int(match.group(1)),
            code=code.group(1) if code else "",
            text=text.group(1) if text else "",
        )
    return ObstoreFault(transport=_transport(shown, dump))


def _transport(shown: str, dump: str) -> str:
    if "credential provider" in shown:
        return "credentials"
    if "BareRedirect" in dump:
        return "redirect"
    kind = _KIND.search(dump)
    found = _TRANSPORT.get(kind.group(1), "") if kind else ""
    if kind is not None and found == "connect":
        below = dump[kind.end() :]  # what comes before names the URL, and that may say anything
        if '"dns error"' in below:
            return "dns"
        if _TLS.search(below):
            return "tls"
    return found
