"""The cases, by name, in the order of the table."""

from __future__ import annotations

from benchmarks.bench import Case
from benchmarks.cases import local, memory, transfers, two_hosts

__all__ = ["CASES"]

CASES: dict[str, Case] = {
    case.name: case for case in (*transfers.CASES, *two_hosts.CASES, *local.CASES, *memory.CASES)
}
