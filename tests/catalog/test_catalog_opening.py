"""Opening and setting up: what works, and one clear line for what does not."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ArgumentError

from cloudmanager.catalog import Catalog, border, schema, set_up
from cloudmanager.catalog import database as database_module
from cloudmanager.cli.setup_db import main
from cloudmanager.errors import (
    CatalogError,
    CatalogNotSetUp,
    CatalogTooNew,
    CatalogUnavailable,
    CloudManagerError,
    ConfigurationError,
    NotACatalog,
)

ROOT = Path(__file__).resolve().parents[2]


def run(database: str, statement: str) -> None:
    """One statement behind the catalog's back."""
    url = database.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url if "://" in database else f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def refusal(database: str, kind: type[CloudManagerError]) -> str:
    """The message with which opening is refused: one line, no secret in it or in its causes."""
    with pytest.raises(kind) as caught:
        Catalog.open(database)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "secret" not in str(chain)
        chain = chain.__cause__
    return str(caught.value)


@pytest.fixture
def impatient(monkeypatch):
    """Give up waiting for a lock soon."""
    monkeypatch.setattr(database_module, "LOCK_WAIT", 0.2)


# --- opening ------------------------------------------------------------------------------


def test_a_missing_sqlite_file_is_created_with_the_schema(tmp_path, file):
    path = tmp_path / "new catalog.sqlite3"
    with Catalog.open(path) as catalog:
        catalog.record([file(1)], [])
        assert catalog.safe_url == str(path)
    with Catalog.open(f"sqlite:///{path}") as catalog:
        assert catalog.exists(file(1).hash)


def test_an_empty_file_becomes_a_catalog(tmp_path):
    path = tmp_path / "c.sqlite3"
    path.touch()
    with Catalog.open(path) as catalog:
        assert catalog.totals() == (0, 0)


@pytest.mark.parametrize("name", ["a b?mode=memory#x%41.db", "new\nline.db", "not utf-8 \udcff.db"])
def test_any_file_name_can_be_a_catalog(tmp_path, file, name):
    path = os.path.join(tmp_path, name)
    with Catalog.open(path) as catalog:
        catalog.record([file(1)], [])
        assert "\n" not in catalog.safe_url
    assert os.path.getsize(path) > 0
    with Catalog.open(path) as catalog:
        assert catalog.exists(file(1).hash)


def test_a_catalog_writes_ahead_so_that_readers_never_wait(tmp_path, file):
    path = tmp_path / "c.sqlite3"
    Catalog.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.execute("BEGIN IMMEDIATE")
    with Catalog.open(path) as catalog:
        assert not catalog.exists(file(1).hash)
        assert list(catalog.files()) == []
        assert catalog.waiting() == []
    other.close()


def test_a_directory_is_no_catalog(tmp_path):
    assert "is a directory" in refusal(str(tmp_path), NotACatalog)


def test_a_missing_folder_is_named(tmp_path):
    message = refusal(str(tmp_path / "no" / "c.sqlite3"), NotACatalog)
    assert str(tmp_path / "no") in message
    assert "cm_setup_db" in message
    assert not (tmp_path / "no").exists()


def test_a_pipe_is_no_catalog(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(str(tmp_path / "pipe"), NotACatalog)


def test_a_file_of_something_else_is_no_catalog_and_stays_as_it_was(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader,\n" * 200)
    before = path.read_bytes()
    assert "is not a database" in refusal(str(path), NotACatalog)
    with pytest.raises(NotACatalog):
        set_up(path)
    assert path.read_bytes() == before


def test_the_database_of_something_else_is_refused_and_gets_no_tables(tmp_path):
    path = str(tmp_path / "other.sqlite3")
    run(path, "CREATE TABLE recipes (id INTEGER)")
    assert "'recipes'" in refusal(path, NotACatalog)
    with pytest.raises(NotACatalog):
        set_up(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    connection.close()


def test_a_file_that_cannot_be_opened_is_not_tried_again(tmp_path):
    path = tmp_path / "link.sqlite3"
    path.symlink_to(tmp_path / "missing folder" / "c.sqlite3")
    with pytest.raises(CatalogUnavailable, match="check the permissions") as caught:
        Catalog.open(path)
    assert not caught.value.retryable


def test_work_that_writes_has_the_lock_before_it_reads_and_work_that_reads_takes_none(tmp_path):
    path = tmp_path / "c.sqlite3"
    with Catalog.open(path) as catalog:
        other = sqlite3.connect(path, isolation_level=None, timeout=0)

        def is_locked(connection) -> bool:
            connection.exec_driver_sql("SELECT * FROM transfer_meter").all()
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            other.execute("ROLLBACK")
            return False

        assert catalog._database.write(is_locked)
        assert not catalog._database.read(is_locked)
        other.close()


@pytest.mark.usefixtures("impatient")
def test_a_catalog_that_somebody_locks_is_unavailable_for_now(tmp_path):
    path = str(tmp_path / "c.sqlite3")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "locked by another process" in refusal(path, CatalogUnavailable)
    other.execute("ROLLBACK")
    other.close()
    Catalog.open(path).close()


@pytest.mark.usefixtures("impatient")
def test_a_write_that_never_gets_its_turn_ends_in_an_error_and_changes_nothing(tmp_path, file):
    path = str(tmp_path / "c.sqlite3")
    with Catalog.open(path) as catalog:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogUnavailable, match="locked") as caught:
            catalog.record([file(1)], [])
        assert caught.value.retryable
        other.execute("ROLLBACK")
        other.close()
        assert catalog.totals() == (0, 0)
        catalog.record([file(1)], [])


def test_every_commit_is_flushed_so_that_power_loss_forgets_nothing_acknowledged(tmp_path):
    with Catalog.open(tmp_path / "c.sqlite3") as catalog:
        level = catalog._database.read(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar())
    assert level == 2  # FULL


def damaged_catalog(tmp_path: Path, file) -> Path:
    path = tmp_path / "c.sqlite3"
    with Catalog.open(path) as catalog:
        catalog.record([file(n) for n in range(3000)], [])
    with path.open("r+b") as database:
        database.seek(40_960)
        database.write(b"\xa5" * (path.stat().st_size - 40_960))
    return path


def test_a_damaged_catalog_says_so_and_what_to_do(tmp_path, file, sha):
    path = damaged_catalog(tmp_path, file)
    with Catalog.open(path) as catalog:
        for call in (
            lambda: list(catalog.files()),
            lambda: [catalog.exists(sha(n)) for n in range(3000)],
            lambda: catalog.record([file(n) for n in range(5000)], []),
        ):
            with pytest.raises(NotACatalog) as caught:
                call()
            assert str(path) in str(caught.value)
            assert "cloudmanager rebuild" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert isinstance(caught.value.__cause__, border.FOREIGN)


def test_a_catalog_whose_tables_are_gone_is_an_error_of_ours(tmp_path, sha):
    path = str(tmp_path / "c.sqlite3")
    with Catalog.open(path) as catalog:
        assert not catalog.exists(sha(1))
        run(path, "DROP TABLE uploads")
        run(path, "DROP TABLE files")
        with pytest.raises(CatalogError, match="no such table"):
            catalog.exists(sha(1))
        with pytest.raises(CatalogError, match="no such table"):
            catalog.get(sha(1))


@pytest.mark.parametrize(
    ("provoke", "words"),
    [
        ("PRAGMA query_only = ON", "permissions"),
        ("PRAGMA max_page_count = 1", "disk is full"),
    ],
)
def test_a_read_only_file_and_a_full_disk_are_told_apart(tmp_path, provoke, words):
    connection = sqlite3.connect(tmp_path / "x.sqlite3")
    connection.execute("CREATE TABLE t (x)")
    connection.execute(provoke)
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    error = border.translate(caught.value, "/c.sqlite3")
    assert isinstance(error, CatalogUnavailable)
    assert words in str(error)


def test_a_server_without_schema_says_how_to_make_it(postgres):
    url = postgres.make_database()
    message = refusal(url, CatalogNotSetUp)
    assert "cm_setup_db postgresql://" in message
    set_up(url)
    Catalog.open(url).close()


def test_the_tables_of_another_application_on_the_server_do_not_disturb(postgres):
    url = postgres.make_database()
    run(url, "CREATE TABLE alembic_version (version_num TEXT)")
    run(url, "INSERT INTO alembic_version VALUES ('of another application')")
    assert set_up(url).startswith("created")
    Catalog.open(url).close()


@pytest.mark.parametrize("found", ["0002", "9999", "of a branch"])
def test_a_newer_schema_is_refused_and_left_alone(database, found):
    run(database, f"UPDATE cloudmanager_schema SET version_num = '{found}'")
    message = refusal(database, CatalogTooNew)
    assert found in message
    assert "upgrade cloudmanager" in message
    with pytest.raises(CatalogTooNew):
        set_up(database)


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_is_not_there_is_unavailable_and_no_password_is_told():
    url = f"postgresql://user:topsecret@127.0.0.1:{unused_port()}/db?sslpassword=othersecret"
    assert "127.0.0.1" in refusal(url, CatalogUnavailable)


def test_a_password_that_a_driver_repeats_is_struck_out():
    cause = ArgumentError("cannot use 'topsecret' here")
    error = border.translate(cause, "postgresql://user@host/db", secret="topsecret")
    assert isinstance(error, CatalogError)
    assert "cannot use '***' here" in str(error)


def test_a_database_that_the_server_lacks_is_named(postgres):
    url = postgres.make_database() + "_missing"
    assert "_missing" in refusal(url, CatalogUnavailable)


def test_the_address_of_an_open_catalog_holds_no_password(postgres):
    url = postgres.make_database()
    set_up(url)
    start, at, rest = url.partition("@")
    user = start.rpartition("/")[2].partition(":")[0] if at else "nobody"
    server = rest if at else url.partition("://")[2]
    with_password = f"postgresql://{user}:topsecret@{server}"
    try:
        with Catalog.open(with_password) as catalog:
            shown = f"{catalog.safe_url} {catalog!r}"
    except CatalogUnavailable as exc:  # a server that asks for passwords refuses this one
        shown = str(exc)
    assert "topsecret" not in shown
    assert server.partition("?")[0] in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:topsecret@host:port/db",
        "mysql://user:topsecret@host/db",
        "postgresql+psycopg2://user:topsecret@host/db",
        "sqlite:///c.sqlite3?topsecret=1",
        "nonsense://topsecret",
        "",
    ],
)
def test_a_url_that_cannot_work_is_a_configuration_error_without_its_password(url):
    refusal(url, ConfigurationError)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_without_the_driver_the_extra_to_install_is_named():
    code = """
import sys
sys.modules["psycopg"] = None
from cloudmanager.catalog import Catalog
from cloudmanager.errors import ConfigurationError
try:
    Catalog.open("postgresql://host/db")
except ConfigurationError as exc:
    print(exc)
"""
    assert "cloudmanager[postgres]" in python(code).stdout


def test_a_sqlite_catalog_is_made_and_opened_without_loading_alembic(tmp_path):
    path = str(tmp_path / "c.sqlite3")
    code = """
import sys
from cloudmanager.catalog import Catalog
Catalog.open(sys.argv[1]).close()
print("alembic" in sys.modules)
"""
    assert [python(code, path).stdout, python(code, path).stdout] == ["False\n", "False\n"]


# --- setting up ---------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path) -> str:
    """A database that holds nothing yet."""
    if request.param == "sqlite":
        return str(tmp_path / "c.sqlite3")
    return request.getfixturevalue("postgres").make_database()


def test_set_up_creates_once_and_says_what_it_did(empty, file):
    assert set_up(empty).startswith("created schema 1 in ")
    with Catalog.open(empty) as catalog:
        catalog.record([file(1)], [])
    assert set_up(empty).endswith(" is up to date (1)")
    with Catalog.open(empty) as catalog:
        assert catalog.exists(file(1).hash)


SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

def upgrade():
    op.create_table("notes", sa.Column("note", sa.Text))
    op.add_column("files", sa.Column("shade", sa.Text))
    op.execute("INSERT INTO notes SELECT hash FROM files")
"""


@pytest.fixture
def next_release(tmp_path, monkeypatch):
    """A function that makes this the code of schema 2, with the given migration to it."""

    def arrive(migration: str) -> None:
        folder = tmp_path / "100% migrations"
        if not folder.exists():
            shutil.copytree(schema.MIGRATIONS, folder)
        (folder / "versions" / "v0002_second.py").write_text(migration)
        monkeypatch.setattr(schema, "MIGRATIONS", folder)
        monkeypatch.setattr(schema, "REVISION", "0002")

    return arrive


def test_an_older_catalog_is_not_upgraded_silently_but_by_set_up(database, file, next_release):
    with Catalog.open(database) as catalog:
        catalog.record([file(1)], [])
    next_release(SECOND)
    message = refusal(database, CatalogNotSetUp)
    assert "has schema 1" in message
    assert "needs 2" in message
    assert "cm_setup_db" in message
    upgraded = set_up(database)
    assert upgraded.startswith("upgraded ")
    assert upgraded.endswith(" from 1 to 2")
    assert set_up(database).endswith(" is up to date (2)")
    with Catalog.open(database) as catalog:
        assert catalog.get(file(1).hash) == file(1)
    run(database, "INSERT INTO notes (note) SELECT shade FROM files")


def test_an_upgrade_that_fails_leaves_the_older_catalog_whole(
    database, file, next_release, monkeypatch
):
    with Catalog.open(database) as catalog:
        catalog.record([file(1)], [])
    next_release(SECOND + '    op.execute("INSERT INTO nowhere VALUES (1)")\n')
    with pytest.raises(CatalogError):
        set_up(database)
    monkeypatch.undo()
    assert set_up(database).endswith(" is up to date (1)")
    with Catalog.open(database) as catalog:
        assert catalog.get(file(1).hash) == file(1)
    with pytest.raises(Exception, match="notes"):
        run(database, "SELECT * FROM notes")


# --- the command --------------------------------------------------------------------------


def test_the_command_from_a_checkout_makes_folders_and_catalog(tmp_path):
    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "bin" / "cm_setup_db"), "db/production.sqlite3"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    first, second = call(), call()
    path = tmp_path / "db" / "production.sqlite3"
    assert (first.returncode, first.stdout) == (0, f"created schema 1 in {path}\n")
    assert (second.returncode, second.stdout) == (0, f"{path} is up to date (1)\n")
    assert first.stderr == second.stderr == ""
    Catalog.open(path).close()


def test_the_command_of_a_checkout_can_be_executed():
    assert os.access(ROOT / "bin" / "cm_setup_db", os.X_OK)


def test_the_command_sets_up_a_server(postgres):
    url = postgres.make_database()
    result = CliRunner().invoke(main, [url])
    assert (result.exit_code, result.stdout[:16]) == (0, "created schema 1")
    Catalog.open(url).close()


def test_the_command_explains_itself():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "cm_setup_db db/production.sqlite3" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["/"], 2),
        (["mysql://host/db"], 2),
        (["postgresql://127.0.0.1:1/db"], 5),
    ],
)
def test_the_command_fails_with_the_code_that_scripts_can_act_on(arguments, code):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader,\n" * 200)
    result = CliRunner().invoke(main, [str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"cm_setup_db: {path} is not a database")
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(NotACatalog, match="taken"):
        set_up(tmp_path / "taken" / "db" / "c.sqlite3")
