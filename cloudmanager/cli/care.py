"""Care of the pool: status, sync, rebuild, cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cloudmanager.cli.app import Session, pass_session
from cloudmanager.cli.codes import INTEGRITY, OK, TEMPORARY
from cloudmanager.cli.display import out, out_json, progress_bar, safe_text, say
from cloudmanager.errors import CacheCorrupt
from cloudmanager.model import format_bytes

if TYPE_CHECKING:
    from cloudmanager.cache import Finding
    from cloudmanager.config import Settings

__all__ = ["cache", "rebuild", "status", "sync"]


@click.command()
@click.option("--waiting", is_flag=True, help="List every copy that waits, with its last error.")
@pass_session
def status(session: Session, waiting: bool) -> None:
    """Show what the pool holds, how full the cache is, and what waits for which host."""
    pool = session.pool()
    if waiting:
        for copy in pool.upload_queue_info():
            if session.json:
                out_json(
                    {
                        "hash": copy.hash,
                        "name": copy.name,
                        "size": copy.size,
                        "host": copy.host,
                        "removal": copy.removal,
                        "attempts": copy.attempts,
                        "error": copy.error,
                    }
                )
            else:
                what = "delete" if copy.removal else "send"
                why = f"  ({safe_text(copy.error)})" if copy.error else ""
                out(f"{what}  {copy.hash}  {copy.host}  {copy.size}  {safe_text(copy.name)}{why}")
        return
    files, size = pool.totals()
    state = pool.sync_status()
    fields = {
        "files": files,
        "bytes": size,
        "redundancy": pool.redundancy,
        "cache_used": pool.used_space(),
        "cache_capacity": pool.capacity(),
        "cache_ratio": round(pool.usage_ratio(), 4),
        "waiting_copies": state.copies,
        "waiting_bytes": state.size,
        "waiting_removals": state.removals,
        "waiting_by_host": dict(state.hosts),
        "hosts": [host.name for host in pool.hosts],
        "month_incoming": pool.current_incoming(),
        "month_outgoing": pool.current_outgoing(),
        "total_incoming": pool.total_incoming(),
        "total_outgoing": pool.total_outgoing(),
    }
    if session.json:
        out_json(fields)
        return
    used, room = pool.used_space(), pool.capacity()
    out(
        f"files     {files} ({format_bytes(size)}), "
        f"each on {pool.redundancy} of {len(pool.hosts)} hosts"
    )
    out(f"cache     {format_bytes(used)} of {format_bytes(room)} ({pool.usage_ratio():.0%})")
    for host in pool.hosts:
        count = state.hosts.get(host.name, 0)
        out(f"host      {host.name}{f': {count} wait' if count else ''}")
    for name in state.unknown_hosts:
        out(f"host      {name}: {state.hosts[name]} wait, but it is not in this pool (--host)")
    if state.copies or state.removals:
        out(
            f"waiting   {state.copies} copies ({format_bytes(state.size)}), "
            f"{state.removals} removals: `cloudmanager sync`"
        )
    else:
        out("waiting   nothing")
    month = (
        f"{format_bytes(pool.current_incoming())} in, {format_bytes(pool.current_outgoing())} out"
    )
    out(f"traffic   {month} this month")


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="List what waits; send nothing.")
@pass_session
@click.pass_context
def sync(ctx: click.Context, session: Session, dry_run: bool) -> None:
    """Send the copies that wait for hosts, and finish removals.

    The exit code is 5 when something still waits afterwards.
    """
    if dry_run:
        ctx.invoke(status, waiting=True)
        return
    with progress_bar("sync") as progress:
        result = session.pool().cloud_sync(progress=progress)
    for error in result.errors:
        say(error)
    if session.json:
        out_json(
            {"delivered": result.delivered, "removed": result.removed, "waiting": result.waiting}
        )
    else:
        out(
            f"{result.delivered} copies sent, {result.removed} objects deleted, "
            f"{result.waiting} wait"
        )
    session.code = TEMPORARY if result.waiting else OK


@click.command()
@click.option("--no-names", is_flag=True, help="Do not ask hosts for the original names (faster).")
@click.option("-n", "--dry-run", is_flag=True, help="Count what the hosts list; record nothing.")
@pass_session
def rebuild(session: Session, no_names: bool, dry_run: bool) -> None:
    """Make a lost catalog anew from what the hosts list.

    Records every object of the pool's layout that the catalog does not know. Nothing on the
    hosts is changed. A folder keeps original names only where its file system has
    extended attributes; a file without one is named by its hash.
    """
    pool = session.pool()
    if dry_run:
        for name, objects, size in pool.survey():
            if session.json:
                out_json({"host": name, "objects": objects, "bytes": size})
            else:
                out(f"{objects} objects ({format_bytes(size)}) on host {name}")
        return
    with progress_bar("rebuild") as progress:
        result = pool.rebuild(names=not no_names, progress=progress)
    for location in result.doubtful:
        say(
            f"{location}: its size differs from another host's copy; "
            "the right one was found by reading"
        )
    if session.json:
        out_json(
            {"objects": dict(result.objects), "files": result.files, "new_files": result.new_files}
        )
        return
    for name, objects in result.objects.items():
        out(f"{objects} objects on host {name}")
    out(f"{result.files} files in the catalog, {result.new_files} of them new")


@click.group()
def cache() -> None:
    """Check or empty the local cache."""


@cache.command()
@click.option(
    "--fix", is_flag=True, help="Drop wrong files, adopt right ones, rebuild a broken index."
)
@pass_session
def check(session: Session, fix: bool) -> None:
    """Read and hash every cached file, and compare with the index.

    The exit code is 6 when something is wrong and was not put right.
    """
    problems = left = 0
    for finding in _findings(session.settings(), fix):
        problems += 1
        left += not finding.fixed
        if session.json:
            out_json(
                {
                    "path": finding.path,
                    "kind": finding.kind,
                    "problem": finding.message,
                    "fixed": finding.fixed,
                }
            )
        else:
            done = " (fixed)" if finding.fixed else ""
            out(f"{safe_text(finding.path)}: {safe_text(finding.message)}{done}")
    if fix:
        session.pool().readopt()
    if not session.json:
        out("the cache is sound" if not problems else f"{problems} problems, {left} of them left")
    session.code = INTEGRITY if left else OK


def _findings(settings: Settings, fix: bool) -> Iterator[Finding]:
    """What `check` finds; with `fix`, an index that cannot be read is made anew first."""
    from cloudmanager.cache import Cache

    try:
        cache = Cache(settings.storage, settings.capacity)
    except CacheCorrupt:
        if not fix:
            raise
        yield from Cache.rebuild(settings.storage, settings.capacity)
        cache = Cache(settings.storage, settings.capacity)
    with cache:
        yield from cache.check(fix=fix)


@cache.command()
@click.option("-n", "--dry-run", is_flag=True, help="Say how much would be freed; free nothing.")
@pass_session
def clear(session: Session, dry_run: bool) -> None:
    """Evict everything that is not in use and not owed to a host."""
    pool = session.pool()
    freed = pool.used_space() if dry_run else pool.cache.clear()
    if session.json:
        out_json({"freed": freed, "dry_run": dry_run})
    else:
        out(f"{'would free at most' if dry_run else 'freed'} {format_bytes(freed)}")
