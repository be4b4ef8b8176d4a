"""Finding and mending what hosts lost or spoiled: verify, repair."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import click

from cloudmanager.cli.app import Session, Size, pass_session
from cloudmanager.cli.codes import INTEGRITY, OK, TEMPORARY
from cloudmanager.cli.display import flush_out, out, out_json, progress_bar, safe_text, say
from cloudmanager.cli.files import Duration

__all__ = ["repair", "verify"]


class Share(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A fraction as ``5%`` or ``0.05``."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"not a share (try 5% or 0.05): {value!r}", param, ctx)
        return share


@click.command()
@click.option("--read", is_flag=True, help="Fetch and hash every byte, not only ask.")
@click.option(
    "--sample",
    type=Share(),
    default="100%",
    metavar="SHARE",
    help="Look at so many copies only, such as 5%.",
)
@click.option(
    "--older-than",
    type=Duration(),
    metavar="TIME",
    help="Leave out what was proven since then, such as 30d.",
)
@click.option(
    "--budget", type=Size(), metavar="SIZE", help="With --read: fetch no more than that, as 50GiB."
)
@pass_session
def verify(
    session: Session, read: bool, sample: float, older_than: timedelta | None, budget: int | None
) -> None:
    """Ask the hosts whether they still have every copy, unspoiled.

    The copies that were checked longest ago come first, so that runs with --sample or --budget,
    or ones that were interrupted, get round to all of them. Prints what is not good (with
    --json every copy), and files with too few copies. The exit code is 6 when there are any, 5
    when a host could not be asked.
    """
    if budget is not None and not read:
        raise click.UsageError("--budget limits what --read fetches")
    pool = session.pool()
    counts: Counter[str] = Counter()
    with progress_bar("verify") as progress:
        for found in pool.verify(
            read=read, sample=sample, older_than=older_than, budget=budget, progress=progress
        ):
            counts[found.verdict] += 1
            if session.json:
                out_json(
                    {
                        "hash": found.hash,
                        "host": found.host,
                        "location": found.location,
                        "verdict": found.verdict,
                        "detail": found.detail or None,
                    }
                )
            elif found.verdict != "good":
                why = f"  ({safe_text(found.detail)})" if found.detail else ""
                out(f"{found.verdict}  {found.hash}  {found.host}  {found.location}{why}")
    short = 0
    for shortage in pool.shortages():
        short += shortage.copies < pool.redundancy
        if shortage.copies >= pool.redundancy:
            continue
        if session.json:
            out_json(
                {
                    "hash": shortage.file.hash,
                    "verdict": "too few copies",
                    "copies": shortage.copies,
                    "redundancy": pool.redundancy,
                }
            )
        else:
            out(
                f"too few copies  {shortage.file.hash}  {safe_text(shortage.file.name)}  "
                f"{shortage.copies} of {pool.redundancy}"
            )
    flush_out()
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    say(f"{counts.total()} copies looked at{': ' if told else ''}{told}")
    if short or counts["wrong"] or counts["missing"]:
        say("`cloudmanager repair` brings back what is missing or wrong")
        session.code = INTEGRITY
    else:
        session.code = TEMPORARY if counts["unreachable"] else OK


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="List what would be done; change nothing.")
@pass_session
def repair(session: Session, dry_run: bool) -> None:
    """Bring every file back to its number of copies, and replace wrong ones.

    Takes the bytes from the cache or any good copy. Goes by what is known: run `verify` first
    to find out. The exit code is 6 when no good copy of a file is left (it is named, and stays
    in the catalog), 5 when something waits for a host.
    """
    pool = session.pool()
    counts: Counter[str] = Counter()
    with progress_bar("repair") as progress:
        for done in pool.repair(dry_run=dry_run, progress=progress):
            counts[done.action] += 1
            if session.json:
                out_json(
                    {
                        "hash": done.hash,
                        "name": done.name,
                        "host": done.host or None,
                        "action": done.action,
                        "detail": done.detail or None,
                    }
                )
            else:
                why = f"  ({safe_text(done.detail)})" if done.detail else ""
                out(f"{done.action}  {done.hash}  {done.host or '-'}  {safe_text(done.name)}{why}")
    flush_out()
    told = ", ".join(f"{count} {action}" for action, count in sorted(counts.items()))
    say(f"{'would be: ' if dry_run and told else ''}{told or 'nothing to repair'}")
    if counts["lost"]:
        session.code = INTEGRITY
    else:
        session.code = TEMPORARY if counts["waiting"] else OK
