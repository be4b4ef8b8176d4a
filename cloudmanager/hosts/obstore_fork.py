"""Whether obstore may be used in this process.

Its threads do not survive a fork, and a call would wait for them for ever: also that of a
host which the child has opened itself. Nothing in obstore can be asked or started anew, so who
would use it asks here first, and else takes the SDK, which works in a child.
"""

from __future__ import annotations

import os

__all__ = ["obstore_works_here"]

_first: int | None = None
"""The process that asked first; a forked child inherits it."""


def obstore_works_here() -> bool:
    """Whether no process that this one was forked from has used obstore. To be asked before
    every use: the first one to ask counts as using it."""
    global _first
    if _first is None:
        _first = os.getpid()
    return _first == os.getpid()
