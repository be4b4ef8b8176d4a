"""The documentation is true: commands run, settings exist, links lead somewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cloudmanager import config
from cloudmanager.cli.app import app
from cloudmanager.cli.setup_db import main as setup_db
from cloudmanager.hosts.azure_account import AzureOptions
from cloudmanager.hosts.command import CommandOptions
from cloudmanager.hosts.http import HttpOptions
from cloudmanager.hosts.s3_options import S3Options
from cloudmanager.hosts.webdav_options import WebdavOptions
from cloudmanager.manager import CloudManager

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
RUN = sorted(page for page in ROOT.glob("docs/*.md") if "```console" in page.read_text("utf-8"))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [
        match.group(3)
        for match in _FENCE.finditer(page.read_text("utf-8"))
        if match.group(2) == language
    ]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its whole name."""

    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield name, command
            return
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from below(f"{name} {each}".strip(), found)

    yield from below("", app)
    yield "cm_setup_db", setup_db


def section(page: str, title: str) -> str:
    """The text below a heading, up to the next one of its level."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, f"there is no section {title!r}"
    return match.group(1)


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: str(value)[:30])
def test_every_command_has_help_options_and_an_example_on_its_page(
    name: str, command: click.Command
) -> None:
    text = section((ROOT / "docs/command-line.md").read_text("utf-8"), name)
    assert command.help, name
    examples = "".join(body for _, _, body in _FENCE.findall(text))
    program = name if name == "cm_setup_db" else "cloudmanager"
    last = name.split()[-1]
    assert re.search(rf"{program}\b.*\b{last}\b" if program != name else program, examples)
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            for spelling in option.opts:
                assert f"`{spelling}" in text, f"{name}: {spelling} is not documented"


def test_every_option_before_the_command_is_documented_and_has_help() -> None:
    text = section((ROOT / "docs/command-line.md").read_text("utf-8"), "Options before the command")
    for option in app.params:
        assert isinstance(option, click.Option)
        assert option.help, option.name
        for spelling in option.opts:
            assert f"`{spelling}" in text, f"{spelling} is not documented"


def test_every_setting_is_documented_with_its_variable_and_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    for each in itertools.chain(config._KEYS, ["config"]):
        assert f"`CLOUDMANAGER_{each.upper()}`" in text
    for each in config._KEYS:
        assert re.search(rf"^\| `{each}` \|", text, re.MULTILINE)
        assert re.search(rf"^- \*\*{each}\*\*:", text, re.MULTILINE)
    assert config.DEFAULT_CAPACITY == 10 * 2**30
    assert "`10GiB`" in text


@pytest.mark.parametrize(
    ("title", "options"),
    [
        ("S3", S3Options),
        ("Azure", AzureOptions),
        ("HTTP", HttpOptions),
        ("WebDAV", WebdavOptions),
        ("Command", CommandOptions),
    ],
)
def test_every_option_of_a_host_is_documented_and_no_other(title: str, options: type) -> None:
    text = section((ROOT / "docs/hosts.md").read_text("utf-8"), title)
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert dataclasses.is_dataclass(options)
    assert documented == {each.name for each in dataclasses.fields(options)}
    for each in dataclasses.fields(options):
        row = re.search(rf"^\| `{each.name}` \| (.*?) \| (.*) \|$", text, re.MULTILINE)
        assert row
        if isinstance(each.default, bool):
            assert str(each.default).lower() in row.group(1)
        elif isinstance(each.default, int) and each.default > 1024:
            assert f"`{each.default // 2**20}MiB`" in row.group(1)
        elif isinstance(each.default, int | str):
            assert f"`{each.default}`" in row.group(1)
        secret = not each.repr and each.name not in ("access_key_id",)
        assert ("secret" in row.group(2)) >= secret, each.name


def test_every_call_of_the_pool_is_on_the_page_of_the_library() -> None:
    text = (ROOT / "docs/library.md").read_text("utf-8")
    for name, value in vars(CloudManager).items():
        if not name.startswith("_") and (callable(value) or isinstance(value, property)):
            assert re.search(rf"\b(cm|other)\.{name}\b|`{name}`", text), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in anchors, target


def test_the_first_command_of_the_readme_names_the_hash_of_the_license() -> None:
    sha256 = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    first, second, *_ = blocks(ROOT / "README.md", "sh")
    assert f"cloudmanager upload LICENSE && .venv/bin/cloudmanager cat {sha256[:12]}\n" in first
    assert "-m pytest" in second


def test_every_toml_block_is_toml_and_every_option_in_it_known() -> None:
    for page in PAGES:
        for block in blocks(page, "toml"):
            if "entry-points" in block:
                continue
            for each in re.split(r"(?=^secret_access_key = )", block, flags=re.MULTILINE):
                table = tomllib.loads(each)
                assert set(table) <= config._KEYS | {"secret_access_key"}, page
    for name in ("examples/config.toml",):
        settings = config.load(config=ROOT / name)
        assert len(settings.hosts) == 4
        assert settings.redundancy == 2


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An empty home, and the programs of this environment on PATH."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def steps(page: Path) -> list[tuple[str, str]]:
    """The commands of the page's console blocks, with the output that is shown for each."""
    found: list[tuple[str, str]] = []
    for block in blocks(page, "console"):
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = piece.splitlines()
            count = 1
            if (marker := re.search(r"<<'?(\w+)'?", lines[0])) is not None:
                count = lines.index(marker.group(1)) + 1
            found.append(("\n".join(lines[:count]), "\n".join(lines[count:])))
    return found


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_order_and_print_what_it_says(
    page: Path, surroundings: dict[str, str]
) -> None:
    mark = "- - - the end of a step - - -"
    todo = steps(page)
    assert todo
    script = "".join(f"{command}\necho; echo '{mark}' $?\n" for command, _ in todo)
    (Path(surroundings["HOME"]) / "work").mkdir()
    done = subprocess.run(
        ["bash"],
        input=script,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=surroundings,
        cwd=Path(surroundings["HOME"]) / "work",
        timeout=250,
        check=False,
    )
    pieces = re.split(rf"\n?^{mark} (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(pieces) == 2 * len(todo) + 1, done.stdout
    for (command, shown), printed, code in zip(todo, pieces[::2], pieces[1::2], strict=False):
        assert code == "0", f"$ {command}\n{printed}"
        pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
        assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"$ {command}\n{printed}"


def test_the_blocks_of_the_library_page_run_as_one_program(
    tmp_path: Path, surroundings: dict[str, str]
) -> None:
    program = "\n".join(blocks(ROOT / "docs/library.md", "python"))
    subprocess.run(
        [sys.executable, "-"], input=program, text=True, cwd=tmp_path, env=surroundings, check=True
    )


def test_the_usage_example_works_with_a_file_of_ones_own(
    tmp_path: Path, surroundings: dict[str, str]
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1000))
    done = subprocess.run(
        [sys.executable, ROOT / "examples/usage.py", "file"],
        cwd=tmp_path,
        env=surroundings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"^exists +True$", done.stdout, re.MULTILINE)
    assert re.search(r"^on_cache +True$", done.stdout, re.MULTILINE)
    assert hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest() in done.stdout
