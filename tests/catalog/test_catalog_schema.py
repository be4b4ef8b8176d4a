"""The migrations, the two schema files and the tables in the code say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from cloudmanager.catalog import Catalog, set_up
from cloudmanager.catalog.tables import REVISION, metadata

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["schema.sql", "schema.postgresql.sql"]


def described(connection: Connection) -> dict[str, Any]:
    """Every table: columns, keys, indexes, checks and what is special to the database."""
    inspector = inspect(connection)
    sqlite = connection.dialect.name == "sqlite"
    result: dict[str, Any] = {}
    for table in sorted(inspector.get_table_names()):
        indexes = inspector.get_indexes(table)
        result[table] = {
            "columns": [
                (c["name"], repr(c["type"]), c["nullable"], c["default"])
                for c in inspector.get_columns(table)
            ],
            "key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "checks": sorted(
                (check["name"], plain(check["sqltext"]))
                for check in inspector.get_check_constraints(table)
            ),
            "indexes": sorted(
                (
                    index["name"],
                    index["column_names"],
                    index["unique"],
                    plain(str(index["dialect_options"].get(f"{connection.dialect.name}_where"))),
                )
                for index in indexes
            ),
        }
        if sqlite:
            rows = connection.exec_driver_sql(f"PRAGMA table_list('{table}')").mappings()
            result[table]["without rowid"] = [row["wr"] for row in rows]
        else:
            query = text(
                "SELECT column_name, collation_name FROM information_schema.columns "
                "WHERE table_name = :table ORDER BY ordinal_position"
            )
            result[table]["collations"] = connection.execute(query, {"table": table}).all()
    return result


def plain(sql: str) -> str:
    return re.sub(r"[\s()]+", " ", sql).strip()


def from_file(connection: Connection, name: str) -> None:
    """Execute a schema file as a shell would: statement by statement, comments and all."""
    for statement in (ROOT / name).read_text().split(";\n"):
        if re.sub(r"--.*", "", statement).strip():
            connection.exec_driver_sql(statement)


@pytest.fixture(params=NAMES)
def three_ways(request, tmp_path) -> Iterator[list[Connection]]:
    """Connections to a database from the migrations, from the schema file and from the tables."""
    with ExitStack() as stack:
        connections = []
        for way in ("migrations", "file", "tables"):
            if request.param == "schema.sql":
                url = f"sqlite:///{tmp_path}/{way}.sqlite3"
            else:
                url = request.getfixturevalue("postgres").make_database()
            if way == "migrations":
                set_up(url)
            engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
            stack.callback(engine.dispose)
            connection = stack.enter_context(engine.connect())
            if way == "file":
                from_file(connection, request.param)
                connection.commit()
            elif way == "tables":
                metadata.create_all(connection)
            connections.append(connection)
        yield connections


def test_migrations_schema_file_and_tables_make_the_same_database(three_ways):
    migrated, filed, coded = (described(connection) for connection in three_ways)
    assert sorted(migrated) == ["cloudmanager_schema", "files", "transfer_meter", "uploads"]
    assert filed == migrated
    assert coded == migrated
    assert len(migrated["uploads"]["checks"]) == 4
    assert len(migrated["uploads"]["indexes"]) == 2
    assert all("queued" in index[3] for index in migrated["uploads"]["indexes"])


def test_migrations_and_schema_file_leave_the_same_revision(three_ways):
    for connection in three_ways[:2]:
        query = text("SELECT version_num FROM cloudmanager_schema")
        assert connection.execute(query).scalars().all() == [REVISION]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_carries_the_schema_files_of_the_checkout(name):
    carried = files("cloudmanager.catalog").joinpath(name).read_bytes()
    assert carried == (ROOT / name).read_bytes()


def test_a_catalog_made_from_the_schema_file_works(tmp_path, file, copy):
    path = tmp_path / "c.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        from_file(connection, "schema.sql")
    engine.dispose()
    with Catalog.open(path) as catalog:
        catalog.record([file(1)], [copy(1)])
        assert catalog.uploads(file(1).hash) == [copy(1)]
    assert set_up(path).endswith("is up to date (1)")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()
