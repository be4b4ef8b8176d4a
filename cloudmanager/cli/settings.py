"""Settings: config path, config show."""

from __future__ import annotations

import click

from cloudmanager.cli.app import Session, pass_session
from cloudmanager.cli.display import out, out_json
from cloudmanager.model import format_bytes

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show the settings and where they come from."""


@config.command()
@pass_session
def path(session: Session) -> None:
    """Print where the configuration file is looked for."""
    from cloudmanager.config import config_path

    given = session.flags.get("config")
    where = str(given) if given else str(config_path())
    if session.json:
        out_json({"path": where})
    else:
        out(where)


@config.command()
@pass_session
def show(session: Session) -> None:
    """Print every setting with its source. Secrets are never shown."""
    from cloudmanager.config import redact, redact_url

    settings = session.settings()
    rows = {
        "database": redact_url(settings.database),
        "storage": settings.storage,
        "capacity": f"{settings.capacity} ({format_bytes(settings.capacity)})",
        "redundancy": settings.redundancy or "all hosts, at most 3",
        "jobs": settings.jobs or "default",
        "bwlimit": f"{format_bytes(settings.bwlimit)}/s" if settings.bwlimit else "none",
    }
    hosts = [
        {"name": host.name, "url": redact_url(host.url), **redact(host.options)}
        for host in settings.hosts
    ]
    if session.json:
        out_json(
            {
                **rows,
                "capacity": settings.capacity,
                "redundancy": settings.redundancy,
                "jobs": settings.jobs,
                "bwlimit": settings.bwlimit,
                "hosts": hosts,
                "sources": dict(settings.sources),
            }
        )
        return
    for key, value in rows.items():
        out(f"{key:<11} {value}   [{settings.sources[key]}]")
    out(f"{'hosts':<11} [{settings.sources['hosts']}]")
    for host in hosts:
        options = ", ".join(f"{k}={v}" for k, v in host.items() if k not in ("name", "url"))
        out(f"  {host['name']}  {host['url']}{f'  ({options})' if options else ''}")
