"""The command line of the benchmarks."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click
import platformdirs
from rich.console import Console

from benchmarks.bench import FULL, QUICK, Bench, Result, run_case
from benchmarks.cases import CASES
from benchmarks.machine import describe
from benchmarks.measure import BenchmarkError, Missing
from benchmarks.peers import AWSCLI
from benchmarks.report import as_json, as_markdown, print_table

__all__ = ["main"]

_MEMORY = Path("/dev/shm")


def _chosen(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    if value is None:
        return tuple(CASES)
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if unknown := [name for name in names if name not in CASES]:
        raise click.BadParameter(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    return names


@click.command()
@click.option("--cases", callback=_chosen, help=f"Which, by comma: {', '.join(CASES)}.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each."
)
@click.option("--quick", is_flag=True, help="500 small files and 64 MiB: shows that all works.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all figures.")
@click.option("--markdown", type=click.Path(dir_okay=False), help="Write the page of the docs.")
@click.option(
    "--folder", type=click.Path(file_okay=False), help="Work below this folder, on a local disk."
)
@click.option(
    "--server-folder",
    type=click.Path(file_okay=False),
    help="Where the servers store [default: memory, where there is enough].",
)
def main(
    cases: tuple[str, ...],
    rounds: int,
    quick: bool,
    json_file: str | None,
    markdown: str | None,
    folder: str | None,
    server_folder: str | None,
) -> None:
    """Measure the project against its peers and print the ratios.

    The exit code is 0 when every case could be measured, whether its goal was reached or not;
    3 when only programs were missing; else 1.
    """
    # Ended like this, the context managers stop the servers and delete the data.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    talk = Console(stderr=True)
    sizes = QUICK if quick else FULL
    cache = Path(platformdirs.user_cache_dir("cloudmanager", appauthor=False)) / "benchmarks"
    results: list[Result] = []
    # A machine that does other things as well measures them too.
    load = os.getloadavg()[0]
    code = 0
    work = Path(tempfile.mkdtemp(prefix="cloudmanager-bench-", dir=folder)).resolve()
    if server_folder is None and _MEMORY.is_dir():
        # A server is another machine: what its disk does shall not slow down this one's.
        roomy = shutil.disk_usage(_MEMORY).free > 6 * sizes.big
        server_folder = str(_MEMORY) if roomy else None
    stored = Path(tempfile.mkdtemp(prefix="cloudmanager-bench-", dir=server_folder or work))
    try:
        bench = Bench(work, stored, cache, sizes, quick=quick)
        for name in cases:
            try:
                results.append(
                    run_case(CASES[name], bench, rounds, lambda text: talk.print(text, style="dim"))
                )
            except (BenchmarkError, OSError) as exc:
                code = 3 if isinstance(exc, Missing) and code in (0, 3) else 1
                talk.print(f"{name}: {exc}", style="red", markup=False)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(stored, ignore_errors=True)
    where = "memory" if stored.is_relative_to(_MEMORY) else "the same disk as the client's"
    facts = describe(
        {
            "awscli": AWSCLI.partition("==")[2],
            "servers store in": where,
            "load when it began": f"{load:.1f}",
        }
    )
    print_table(results, Console())
    if json_file is not None:
        text = as_json(results, facts, sizes, bench.notes)
        Path(json_file).write_text(text, encoding="utf-8")
    if markdown is not None:
        page = as_markdown(results, facts, sizes, bench.notes, rounds)
        Path(markdown).write_text(page, encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
