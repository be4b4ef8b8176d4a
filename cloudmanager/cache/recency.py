"""When each entry was last used: a memory-mapped file of stamps.

A hit has to cost microseconds and still be seen by every process that may evict, so it
stores eight bytes in shared memory and nothing else. File times would not do: any reader
of the file disturbs its access time (relatime), and setting one costs a system call.

A record is two native 64-bit words, the stamp and the serial number of the entry that
owns the slot. The serial tells a process whether the slot it remembers still belongs to
the entry it remembers; slots are used again, serials are not.

Stamps are nanoseconds of the monotonic clock plus a shift. All processes of a machine
read the same monotonic clock and setting the wall clock does not move it, but it starts
again at each boot; the shift, chosen once per boot, keeps stamps from going back.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
import os
import sys
from typing import Final

__all__ = ["Recency", "boot_id"]

_RECORD: Final = 16
_GROWTH: Final = 4096 * _RECORD
"""Bytes the file grows by: the slots of 4,096 entries, 64 KiB."""


class Recency:
    """The stamps of one cache directory.

    `words` is the mapping as 64-bit words: ``words[2 * slot]`` is the stamp of a slot and
    ``words[2 * slot + 1]`` its serial. It is replaced when the mapping grows, never shrunk.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.words: memoryview[int] = memoryview(b"").cast("Q")
        try:
            self.cover(1)
        except BaseException:
            os.close(self._fd)
            raise

    def cover(self, slots: int) -> None:
        """Map at least the first `slots` slots, growing the file where it is shorter.

        Raises
        ------
        OSError
            When the disk is full. The zeros are written rather than left as a hole: a store
            into a hole of a full disk kills the process with SIGBUS.
        """
        needed = slots * _RECORD
        if needed <= len(self.words) * 8:
            return
        size = os.fstat(self._fd).st_size
        if size < needed:
            target = -(-needed // _GROWTH) * _GROWTH
            while size < target:
                size += os.pwrite(self._fd, bytes(target - size), size)
        mapped = mmap.mmap(self._fd, size // _RECORD * _RECORD)
        # The mapping before stays valid for threads that still hold it: it is unmapped when
        # the last of them lets go of its view.
        self.words = memoryview(mapped).cast("Q")

    def stamp(self, slot: int, serial: int) -> int:
        """When the entry was last used; 0 when the slot does not know that entry."""
        self.cover(slot + 1)
        words = self.words
        return words[2 * slot] if words[2 * slot + 1] == serial else 0

    def mark(self, slot: int, serial: int, stamp: int) -> None:
        """Say that the entry was used at `stamp`, taking the slot over if need be."""
        self.cover(slot + 1)
        words = self.words
        words[2 * slot] = stamp
        words[2 * slot + 1] = serial

    def latest(self, slots: int) -> int:
        """The latest stamp of the first `slots` slots. Reads them all: once per boot."""
        self.cover(max(slots, 1))
        return max(self.words[0 : 2 * slots : 2], default=0)

    def close(self) -> None:
        os.close(self._fd)
        self.words = memoryview(b"").cast("Q")


def boot_id() -> str:
    """What tells this run of the machine from the one before; ``""`` when it cannot be told."""
    if sys.platform == "darwin":
        return _darwin_boot_id()
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""  # no /proc: the caller compares the clock with the latest stamp instead


def _darwin_boot_id() -> str:
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    buffer = ctypes.create_string_buffer(64)
    length = ctypes.c_size_t(len(buffer))
    name = b"kern.bootsessionuuid"
    if library.sysctlbyname(name, buffer, ctypes.byref(length), None, ctypes.c_size_t(0)) != 0:
        return ""
    return buffer.value.decode("ascii", "replace")
