"""The reads that must stay fast in a large catalog go through an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from cloudmanager.catalog import Catalog, lookup, set_up

ROWS = 200_000

FILL = {
    "sqlite": [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) "
        "INSERT INTO files SELECT lower(hex(randomblob(32))), 'x', NULL, i, 0 FROM n",
        "INSERT INTO uploads (hash, host, location, status, external, attempts) "
        "SELECT hash, 'a', 'l' || size, 'stored', false, 0 FROM files",
        "INSERT INTO uploads (hash, host, location, status, external, attempts) "
        "SELECT hash, 'b', '', 'queued', false, 0 FROM files WHERE size % 40 = 0",
        "ANALYZE",
    ],
    "postgresql": [
        "INSERT INTO files SELECT encode(sha256(i::text::bytea), 'hex'), 'x', NULL, i, 0 "
        "FROM generate_series(1, :rows) AS i",
        "INSERT INTO uploads (hash, host, location, status, external, attempts) "
        "SELECT hash, 'a', 'l' || size, 'stored', false, 0 FROM files",
        "INSERT INTO uploads (hash, host, location, status, external, attempts) "
        "SELECT hash, 'b', '', 'queued', false, 0 FROM files WHERE size % 40 = 0",
        "ANALYZE",
    ],
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def large(request, tmp_path_factory) -> Iterator[Catalog]:
    """A catalog of 200,000 files, one in forty of them queued for another host."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('large')}/c.sqlite3"
    else:
        url = request.getfixturevalue("postgres").make_database()
    set_up(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in FILL[request.param]:
            connection.execute(text(statement), {"rows": ROWS} if ":rows" in statement else {})
    engine.dispose()
    with Catalog.open(url) as catalog:
        yield catalog


@pytest.fixture
def plan(large) -> Callable[[Callable[[], Any]], str]:
    """How the database carries out what a call sends to it."""
    engine = large._database.engine

    def explain(call: Callable[[], Any]) -> str:
        sent: list[tuple[str, Any]] = []

        def listen(_connection, _cursor, statement, parameters, _context, _many) -> None:
            if statement.startswith(("SELECT", "DELETE", "UPDATE")):
                sent.append((statement, parameters))

        event.listen(engine, "before_cursor_execute", listen)
        try:
            call()
        finally:
            event.remove(engine, "before_cursor_execute", listen)
        assert sent
        how = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
        with engine.connect() as connection:
            return "\n".join(
                str(tuple(row))
                for statement, parameters in sent
                for row in connection.exec_driver_sql(how + statement, parameters)
            )

    return explain


def assert_indexed(plan: str) -> None:
    """No table is read whole. The index of what waits may be: it holds nothing else."""
    for bad in ("SCAN files", "SCAN transfer", "TEMP B-TREE", "Seq Scan"):
        assert bad not in plan, plan
    assert plan.count("SCAN uploads") == plan.count("SCAN uploads USING INDEX uploads_waiting")


HASH = "6f" * 32


@pytest.mark.parametrize(
    "call",
    [
        lambda catalog: catalog.get(HASH),
        lambda catalog: catalog.get_many([HASH, "7" * 64]),
        lambda catalog: catalog.find("6f7bed"),
        lambda catalog: catalog.find("6f7bed", limit=50),
        lambda catalog: next(catalog.files(after=HASH)),
        lambda catalog: next(catalog.files(prefix="6f", after=HASH[:2]), None),
        lambda catalog: catalog.uploads(HASH),
        lambda catalog: catalog.mark_removing("0" * 64),
        lambda catalog: catalog.finish_removal("0" * 64),
    ],
)
def test_reading_by_hash_uses_the_primary_key(large, plan, call):
    assert_indexed(plan(lambda: call(large)))


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"after": (HASH, "b", "")},
        {"host": "b"},
        {"host": "b", "after": (HASH, "b", "")},
        {"host": "b", "after": (HASH, "a", "")},
        {"host": "b", "after": (HASH, "c", "")},
    ],
)
def test_what_waits_is_read_from_its_own_index_in_order(large, plan, page):
    how = plan(lambda: large.waiting(limit=100, **page))
    assert_indexed(how)
    assert "uploads_waiting" in how
    assert "Sort" not in how
    assert len(large.waiting(limit=100, **page)) == 100


def test_the_hot_look_up_uses_the_primary_key(large):
    if large._database.is_sqlite:
        with large._database.engine.connect() as connection:
            how = "EXPLAIN QUERY PLAN " + lookup._EXISTS
            plan = str(connection.exec_driver_sql(how, (HASH,)).all())
        assert_indexed(plan)
        assert "SEARCH files USING PRIMARY KEY" in plan
    assert large.exists(large.find("6")[0])
    assert not large.exists("0" * 64)
