"""The table of a run: on the terminal, as JSON, and as a page of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench import Result, Sizes
from benchmarks.measure import Goal, median

__all__ = ["Row", "as_json", "as_markdown", "print_table", "rows"]

_HEADINGS = ("case", "the project", "against", "ratio", "to reach", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ratio` is None when no peer was measured."""

    case: str
    goal: Goal
    ratio: float | None
    subject: float
    peer: float | None

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "no peer"
        return "reached" if self.ratio <= self.goal.limit else "missed"

    def cells(self) -> tuple[str, ...]:
        return (
            self.goal.title,
            shown(self.subject, self.goal.measure),
            "-" if self.peer is None else shown(self.peer, self.goal.measure),
            "-" if self.ratio is None else f"{self.ratio:.2f}",
            f"<= {self.goal.limit:g}",
            self.verdict,
        )


def shown(value: float, measure: str = "seconds") -> str:
    """A figure with its unit, three digits."""
    if measure == "rss":
        return f"{value / 1024**2:.0f} MiB"
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def rows(results: Sequence[Result]) -> Iterator[Row]:
    """Every goal of every case that was run."""
    for result in results:
        for goal in result.case.goals:
            yield Row(
                result.case.name,
                goal,
                goal.ratio(result.samples),
                median(result.samples[goal.subject], goal.measure),
                goal.peer(result.samples),
            )


def print_table(results: Sequence[Result], console: Console) -> None:
    """The ratios, then all medians."""
    table = Table(title="Medians and ratios")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("case", "") else "right")
    for row in rows(results):
        style = {"reached": "green", "missed": "red"}.get(row.verdict, "")
        table.add_row(*row.cells(), style=style)
    console.print(table)
    detail = Table(title="All contenders, median (least)")
    for heading in ("case", "contender", "time", "CPU", "memory"):
        detail.add_column(heading, justify="left" if heading in ("case", "contender") else "right")
    for cells in _contenders(results):
        detail.add_row(*cells)
    console.print(detail)


def _contenders(results: Sequence[Result]) -> Iterator[tuple[str, str, str, str, str]]:
    for result in results:
        for label, samples in result.samples.items():
            least = min(sample.seconds for sample in samples)
            whole = any(sample.rss for sample in samples)
            yield (
                result.case.name,
                label,
                f"{shown(median(samples))} ({shown(least)})",
                shown(median(samples, "cpu")) if whole else "",
                shown(median(samples, "rss"), "rss") if whole else "",
            )


def as_json(
    results: Sequence[Result], facts: Mapping[str, str], sizes: Sizes, notes: Sequence[str]
) -> str:
    """Machine, sizes, every sample and every ratio."""
    document: dict[str, Any] = {
        "machine": dict(facts),
        "sizes": asdict(sizes),
        "notes": list(notes),
        "goals": [
            {
                "case": row.case,
                "title": row.goal.title,
                "subject": row.goal.subject,
                "peers": row.goal.peers,
                "measure": row.goal.measure,
                "subject_median": row.subject,
                "peer_median": row.peer,
                "ratio": row.ratio,
                "to_reach": row.goal.limit,
                "verdict": row.verdict,
            }
            for row in rows(results)
        ],
        "samples": {
            result.case.name: {
                label: [asdict(sample) for sample in samples]
                for label, samples in result.samples.items()
            }
            for result in results
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


_PAGE = """\
# Benchmarks

Written by `python -m benchmarks` (`tox -e bench`); edit `benchmarks/report.py`, not this page.

The project and its peers take turns on the same server and the same data, each from an empty
server, a new pool and sources in the page cache; what an earlier turn wrote is flushed before the
next begins. A time is that of a whole process, start-up included. The ratio of the medians of
{rounds} rounds (one for memory) counts; absolute times only say how fast the machine was. The
peers copy; the project also hashes, caches, records and, on the way down, verifies. Durability
is each program's own: the project flushes its catalog at every
batch, the others flush nothing.

Small files: {files:,} of 4 KiB. Large file: {big} MiB. Huge file: {huge} MiB, sparse.
Catalog: {catalog:,} files. Full caches: {cache_many:,} and {cache_few:,} entries.

| {heads} |
|---|--:|--:|--:|--:|---|
{ratios}

## All contenders

| case | contender | time: median (least) | CPU | memory |
|---|---|--:|--:|--:|
{contenders}

## The machine

{facts}
"""


def as_markdown(
    results: Sequence[Result],
    facts: Mapping[str, str],
    sizes: Sizes,
    notes: Sequence[str],
    rounds: int,
) -> str:
    """The page for the documentation."""
    mib = 1024**2
    listed = [f"- {name}: {value}" for name, value in facts.items()]
    listed += [f"- {note}" for note in notes]
    return _PAGE.format(
        rounds=rounds,
        files=sizes.files,
        big=sizes.big // mib,
        huge=sizes.huge // mib,
        catalog=sizes.catalog,
        cache_many=sizes.cache_many,
        cache_few=sizes.cache_few,
        heads=" | ".join(_HEADINGS),
        ratios="\n".join(f"| {' | '.join(row.cells())} |" for row in rows(results)),
        contenders="\n".join(f"| {' | '.join(cells)} |" for cells in _contenders(results)),
        facts="\n".join(listed),
    )
