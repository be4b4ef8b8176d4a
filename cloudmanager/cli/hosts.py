"""Hosts: ls, test, clean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cloudmanager.cli.app import Session, pass_session
from cloudmanager.cli.codes import FAILED, OK, code_for, combine
from cloudmanager.cli.display import error_line, names_for_people, out, out_json, safe_text
from cloudmanager.cli.files import Duration
from cloudmanager.errors import HostError, IntegrityError, UnknownHost
from cloudmanager.model import format_bytes, pool_key

if TYPE_CHECKING:
    from cloudmanager.config import HostSetting
    from cloudmanager.hosts import Host

__all__ = ["host"]


@click.group()
def host() -> None:
    """List, test and clean the hosts."""


@host.command(name="ls")
@pass_session
def ls_(session: Session) -> None:
    """List the hosts in order of preference."""
    from cloudmanager.config import redact, redact_url

    for rank, setting in enumerate(session.settings().hosts, 1):
        url = redact_url(setting.url)
        if session.json:
            out_json({"name": setting.name, "url": url, "options": redact(setting.options)})
        else:
            shown = "" if setting.name == url else f"  {url}"
            out(f"{rank}  {setting.name}{shown}")


@host.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@pass_session
def test(session: Session, names: Sequence[str]) -> None:
    """Try whether hosts are reachable and allow put, get and delete.

    Writes one small object below the host's prefix and deletes it again.
    """
    codes: set[int] = set()
    good = 0
    for setting in _chosen(session, names):
        steps: list[str] = []
        try:
            opened = setting.open()
            try:
                steps.extend(_try_out(opened))
            finally:
                opened.close()
        except Exception as exc:  # noqa: BLE001 - one bad host does not stop the rest
            codes.add(code_for(exc))
            error_line(exc)
            if session.json:
                out_json({"host": setting.name, "ok": False, "error": names_for_people(exc)})
            continue
        good += 1
        if session.json:
            out_json({"host": setting.name, "ok": True, "steps": steps})
        else:
            out(f"{setting.name}: {', '.join(steps)}: all good")
    session.code = OK if not codes else FAILED if good else combine(codes)


@host.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--older-than",
    type=Duration(),
    default="1d",
    show_default=True,
    help="Only uploads begun longer ago than this, so that running ones are left alone.",
)
@pass_session
def clean(session: Session, names: Sequence[str], older_than: timedelta) -> None:
    """Abort uploads that were begun and never finished: they cost storage on S3."""
    for setting in _chosen(session, names):
        opened = setting.open()
        try:
            for line in opened.clean(older_than=older_than):
                if session.json:
                    out_json({"host": setting.name, "cleaned": line})
                else:
                    out(f"{setting.name}: {safe_text(line)}")
        finally:
            opened.close()


def _chosen(session: Session, names: Sequence[str]) -> Iterator[HostSetting]:
    from cloudmanager import config

    known = {setting.name: setting for setting in session.settings().hosts}
    for name in names or known:
        if name in known:
            yield known[name]
            continue
        try:
            yield config.load(**{**session.flags, "hosts": (name,)}).hosts[0]
        except UnknownHost as exc:
            listed = ", ".join(known) or "none"
            raise UnknownHost(f"no host is named {name!r}; there are: {listed}") from exc


def _try_out(opened: Host) -> Iterator[str]:
    """Do what the pool does with a host, once; yields the steps that worked."""
    from cloudmanager.source import BytesSource

    opened.check()
    yield "reachable"
    if not opened.capabilities.put:
        return
    data = b"cloudmanager host test " + os.urandom(16)
    sha256 = hashlib.sha256(data).hexdigest()
    info = opened.put(pool_key(sha256), BytesSource(data), sha256=sha256, filename="host-test.txt")
    yield f"put {format_bytes(len(data))}"
    try:
        if opened.stat(info.location).size != len(data):
            raise _wrong(opened, info.location, "stat")
        if b"".join(opened.get(info.location)) != data:
            raise _wrong(opened, info.location, "get")
        yield "get"
    finally:
        if opened.capabilities.delete:
            opened.delete([info.location])
    if opened.capabilities.delete:
        yield "delete"


def _wrong(opened: Host, location: str, operation: str) -> HostError:
    return IntegrityError(
        "it returned something else than was put",
        host=opened.name,
        operation=operation,
        location=location,
    )
