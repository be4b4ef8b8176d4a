"""A catalog on each kind of database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest

from cloudmanager.catalog import Catalog, set_up
from cloudmanager.model import FileRecord, UploadRecord


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path) -> str:
    """A path or URL with an empty catalog in it."""
    if request.param == "sqlite":
        where = str(tmp_path / "catalog.sqlite3")
    else:
        where = request.getfixturevalue("postgres").make_database()
    set_up(where)
    return where


@pytest.fixture
def catalog(database: str) -> Iterator[Catalog]:
    with Catalog.open(database) as opened:
        yield opened


@pytest.fixture
def sha() -> Callable[[object], str]:
    """The hash of whatever is given."""
    return lambda value: hashlib.sha256(str(value).encode()).hexdigest()


@pytest.fixture
def file(sha) -> Callable[..., FileRecord]:
    """A record of a file; a test names only what matters to it."""

    def make(key: object, *, name: str = "a.txt", size: int = 5, created: float = 1.5):
        return FileRecord(sha(key), name, size, created)

    return make


@pytest.fixture
def copy(sha) -> Callable[..., UploadRecord]:
    """A record of a copy on host ``a``; it is stored unless the test says otherwise."""

    def make(key: object, host: str = "a", location: str | None = None, **fields) -> UploadRecord:
        queued = fields.get("status") == "queued"
        if location is None:
            location = "" if queued else f"file:///{host}/{sha(key)}"
        return UploadRecord(sha(key), host, location, **fields)

    return make
