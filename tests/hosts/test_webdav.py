"""The WebDAV host against two real servers, and its files looked at behind its back."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manager.world import World, content, sha

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    IntegrityError,
    ObjectNotFound,
    SourceChanged,
    Unsupported,
)
from cloudmanager.hosts import open_host
from cloudmanager.hosts.webdav import WebdavHost
from cloudmanager.hosts.webdav_place import TEMPORARY, Place
from cloudmanager.model import pool_key
from cloudmanager.source import BytesSource, FileSource
from servers.webdav import PASSWORD, USER, WebdavServer, host_url

CREDENTIALS = {"user": USER, "password": PASSWORD}
DATA = random.Random(1).randbytes(700_000)


@pytest.fixture(params=["rclone_webdav", "wsgidav"])
def server(request: pytest.FixtureRequest) -> WebdavServer:
    found: WebdavServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def collection(server: WebdavServer) -> str:
    return server.make_collection()


@pytest.fixture
def folder(server: WebdavServer, collection: str) -> Path:
    return server.directory / collection


@pytest.fixture
def host(server: WebdavServer, collection: str) -> Iterator[WebdavHost]:
    made = make_host(server, collection)
    seen(made.check)
    yield made
    made.close()


def make_host(server: WebdavServer, collection: str, **options: Any) -> WebdavHost:
    url = host_url(server.endpoint, collection)
    made = open_host(url, {**CREDENTIALS, **options}, name="dav")
    assert isinstance(made, WebdavHost)
    return made


def put(host: WebdavHost, key: str, data: bytes, **more: Any) -> str:
    return host.put(key, BytesSource(data), sha256=sha(data), **more).location


def read(host: WebdavHost, location: str, **part: int) -> bytes:
    return b"".join(host.get(location, **part))


def seen(call: Callable[[], Any]) -> Any:
    """What `call` answers once the server sees what was changed behind its back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return call()
        except HostError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_put_lies_on_the_server_and_comes_back(host: WebdavHost, folder: Path) -> None:
    sent: list[int] = []
    key = pool_key(sha(DATA))
    info = host.put(key, BytesSource(DATA), sha256=sha(DATA), filename="x", on_bytes=sent.append)
    assert files(folder) == {key: DATA}
    assert sum(sent) == len(DATA)
    assert (info.key, info.size) == (key, len(DATA))
    assert info.location == host.location(key)
    assert read(host, info.location) == DATA
    again = host.stat(info.location)
    assert (again.key, again.size, again.checksum) == (key, len(DATA), info.checksum)
    assert again.modified is not None
    assert abs(again.modified - datetime.now(UTC)) < timedelta(hours=1)
    assert again.etag


def test_what_somebody_else_put_is_read(host: WebdavHost, folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "b").write_bytes(DATA)
    location = host.location("a/b")
    assert seen(lambda: host.stat(location)).size == len(DATA)
    assert read(host, location) == DATA
    assert host.read(location, limit=len(DATA)) == DATA


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (0, 1), (5, 10), (699_990, 10), (699_990, 11), (699_999, None), (3, 0)],
)
def test_ranges_are_what_was_asked_for(host: WebdavHost, offset: int, length: int | None) -> None:
    location = put(host, "k", DATA)
    end = None if length is None else offset + length
    assert b"".join(host.get(location, offset=offset, length=length)) == DATA[offset:end]


@pytest.mark.parametrize("offset", [700_000, 800_000])
def test_a_range_behind_the_end_is_empty(host: WebdavHost, offset: int) -> None:
    location = put(host, "k", DATA)
    assert read(host, location, offset=offset) == b""
    assert read(host, location, offset=offset, length=5) == b""


def test_an_empty_file_goes_there_and_back(host: WebdavHost, folder: Path) -> None:
    location = put(host, "e/mpty", b"")
    assert files(folder) == {"e/mpty": b""}
    assert host.stat(location).size == 0
    assert read(host, location) == b""
    assert [info.size for info in host.list()] == [0]


def test_a_large_file_streams_from_the_disk(host: WebdavHost, folder: Path, tmp_path: Path) -> None:
    data = DATA * 30
    path = tmp_path / "large"
    path.write_bytes(data)
    host.put("6f/large", FileSource(path), sha256=sha(data))
    assert (folder / "6f" / "large").read_bytes() == data
    assert read(host, host.location("6f/large")) == data


def test_an_object_that_is_there_is_replaced(host: WebdavHost, folder: Path) -> None:
    put(host, "a/b", b"damaged")
    location = put(host, "a/b", b"right")
    assert files(folder) == {"a/b": b"right"}
    assert read(host, location) == b"right"


def test_a_collection_is_never_replaced_by_an_object(host: WebdavHost, folder: Path) -> None:
    put(host, "a/b", b"precious")
    with pytest.raises(HostError, match="a collection has that name"):
        put(host, "a", b"x")
    assert files(folder) == {"a/b": b"precious"}


def test_a_collection_is_never_deleted_as_an_object(host: WebdavHost, folder: Path) -> None:
    put(host, "a/b", b"precious")
    with pytest.raises(HostError, match="left alone"):
        host.delete([host.location("a")])
    with pytest.raises(ObjectNotFound, match="is a collection"):
        host.stat(host.location("a"))
    assert files(folder) == {"a/b": b"precious"}


@pytest.mark.parametrize("change", [b"", b"x" * 99_999, b"y" * 100_000, b"x" * 100_001])
def test_a_file_that_changes_under_the_upload_is_never_stored(
    host: WebdavHost, tmp_path: Path, change: bytes
) -> None:
    path = tmp_path / "changing"
    path.write_bytes(b"x" * 100_000)
    source = FileSource(path)
    path.write_bytes(change)
    with pytest.raises(SourceChanged):
        host.put("a/b", source, sha256=sha(b"x" * 100_000))
    assert list(host.list()) == []
    with pytest.raises(ObjectNotFound):
        host.stat(host.location("a/b"))


def test_an_empty_file_that_grew_is_not_stored(host: WebdavHost, tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"")
    source = FileSource(path)
    path.write_bytes(b"x")
    with pytest.raises(SourceChanged, match="grew"):
        host.put("k", source, sha256=sha(b""))
    assert list(host.list()) == []


def test_a_source_that_went_away_is_said_as_such(host: WebdavHost, tmp_path: Path) -> None:
    path = tmp_path / "gone"
    path.write_bytes(b"x")
    source = FileSource(path)
    path.unlink()
    with pytest.raises(SourceChanged, match="cannot be read any more"):
        host.put("k", source, sha256=sha(b"x"))


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [Stop, BrokenPipeError])
def test_a_transfer_that_is_told_to_stop_stops_and_leaves_nothing(
    host: WebdavHost, kind: type[Exception]
) -> None:
    def stop(_: int) -> None:
        raise kind("told to")

    # The caller's own exception, also where it looks like one of the network.
    with pytest.raises(kind, match="told to"):
        put(host, "a/b", DATA * 10, on_bytes=stop)
    assert list(host.list()) == []


def test_what_is_not_there_is_said_with_host_operation_and_location(host: WebdavHost) -> None:
    location = host.location("no/thing")
    with pytest.raises(ObjectNotFound) as caught:
        host.stat(location)
    assert (caught.value.host, caught.value.operation) == ("dav", "stat")
    assert (caught.value.location, caught.value.retryable) == (location, False)
    with pytest.raises(ObjectNotFound):
        next(host.get(location))


def test_deleting_is_idempotent_and_takes_nothing_else(host: WebdavHost, folder: Path) -> None:
    location = put(host, "a/b", b"x")
    put(host, "a/c", b"y")
    host.delete([location, host.location("never"), host.location("no/such/thing")])
    host.delete([location])
    assert files(folder) == {"a/c": b"y"}


def test_a_collection_that_is_not_there_is_never_an_empty_host(server: WebdavServer) -> None:
    name = f"gone-{time.time_ns()}"
    host = make_host(server, name)
    calls: list[Callable[[], Any]] = [
        lambda: list(host.list()),
        lambda: list(host.list("6f/")),
        lambda: list(host.clean(older_than=timedelta(0))),
        host.check,
        lambda: host.stat(host.location("k")),
        lambda: next(host.get(host.location("k"))),
        lambda: host.delete([host.location("k")]),
        lambda: put(host, "k", b"x"),
        lambda: put(host, "a/k", b"x"),
        lambda: put(host, "a/b/k", b"x"),
    ]
    for call in calls:
        with pytest.raises(ContainerNotFound):
            call()
    assert not (server.directory / name).exists()


def test_a_file_in_place_of_the_collection_is_no_host(host: WebdavHost) -> None:
    location = put(host, "file", b"x")
    other = open_host(location, CREDENTIALS)
    with pytest.raises(HostError):
        other.check()
    with pytest.raises(HostError):
        list(other.list())


@given(
    st.lists(
        st.lists(
            st.sampled_from(["a", "b", "a.txt", "a-", "ä", "A", "a0"]), min_size=1, max_size=3
        ),
        max_size=8,
    ),
    st.sampled_from(["", "a", "a/", "a/b", "ä", "zz", "../", "/", "a//"]),
    st.sampled_from(["", "a", "a/a", "a.txt", "b/a"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_listing_is_ascending_by_the_bytes_of_the_key(
    wsgidav: WebdavServer, parts: list[list[str]], prefix: str, after: str
) -> None:
    collection = wsgidav.make_collection()
    root = wsgidav.directory / collection
    keys = set()
    for names in parts:
        path = root.joinpath(*names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"x")
                keys.add("/".join(names))
        except (FileExistsError, NotADirectoryError):
            continue
    host = make_host(wsgidav, collection)
    wanted = sorted(
        (k for k in keys if k.startswith(prefix) and k.encode() > after.encode()), key=str.encode
    )
    assert [info.key for info in host.list(prefix, after=after)] == wanted
    host.close()


def test_a_listing_goes_on_where_it_was_left(host: WebdavHost) -> None:
    keys = sorted(pool_key(sha(bytes([n]))) for n in range(17))
    keys += ["zz/1", "zz/2/3", "zz/4"]
    for key in keys:
        put(host, key, key.encode())
    assert [info.key for info in host.list()] == keys
    for place in (0, 7, 17, 18, 19):
        assert [info.key for info in host.list(after=keys[place])] == keys[place + 1 :]
    one = next(iter(host.list(keys[3][:5])))
    assert (one.key, one.size, one.location) == (keys[3], 67, host.location(keys[3]))


def test_unfinished_uploads_are_neither_listed_nor_owned(host: WebdavHost, folder: Path) -> None:
    put(host, "6f/real", b"x")
    (folder / "6f" / f"{TEMPORARY}1").write_bytes(b"half")
    (folder / f"{TEMPORARY}2").write_bytes(b"half")
    (folder / "6f" / "marker").write_bytes(b"")
    while "6f/marker" not in (keys := [info.key for info in host.list()]):
        time.sleep(0.02)
    assert keys == ["6f/marker", "6f/real"]
    assert not host.owns(host.location(f"6f/{TEMPORARY}1"))
    with pytest.raises(HostError, match="not on this host"):
        host.delete([host.location(f"6f/{TEMPORARY}1")])
    with pytest.raises(HostError, match="looks like an unfinished upload"):
        put(host, f"6f/{TEMPORARY}1", b"x")


def test_unfinished_uploads_are_cleaned_when_they_are_old_enough(
    host: WebdavHost, folder: Path
) -> None:
    put(host, "6f/real", b"x")
    old, new = (folder / "6f" / f"{TEMPORARY}{age}" for age in ("old", "new"))
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    # Aged as well: only the name tells what is unfinished.
    os.utime(folder / "6f" / "real", (hours_ago, hours_ago))
    done: list[str] = []
    deadline = time.monotonic() + 30
    while not done and time.monotonic() < deadline:
        done += host.clean(older_than=timedelta(hours=1))
    assert [line.rsplit("-", 1)[1] for line in done] == ["old"]
    assert sorted(path.name for path in (folder / "6f").iterdir()) == [new.name, "real"]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/x", "a//b", ".", "", "a\0b", "x/"])
def test_a_key_cannot_leave_the_collection(host: WebdavHost, key: str) -> None:
    with pytest.raises(HostError, match="cannot be a path"):
        put(host, key, b"x")


@pytest.mark.parametrize("key", ["a b/ü%41#&+=", "100%", "a;b,c:d@e/~f", "q'\"<>", "日本/語"])
def test_keys_with_any_character_come_back(host: WebdavHost, folder: Path, key: str) -> None:
    location = put(host, key, b"x")
    assert location.isascii()
    assert files(folder) == {key: b"x"}
    assert read(host, location) == b"x"
    assert host.stat(location).key == key
    assert [info.key for info in host.list()] == [key]
    put(host, key, b"y")
    host.delete([location])
    assert files(folder) == {}


def test_a_name_that_the_server_misreads_is_not_taken_for_stored(
    rclone_webdav: WebdavServer, wsgidav: WebdavServer
) -> None:
    # wsgidav ends the name of a MOVE at an encoded question mark.
    right = make_host(rclone_webdav, rclone_webdav.make_collection())
    wrong = make_host(wsgidav, wsgidav.make_collection())
    seen(right.check)
    assert read(right, put(right, "a?b", b"x")) == b"x"
    with pytest.raises(IntegrityError, match="another name"):
        put(wrong, "a?b", b"x")
    right.close()
    wrong.close()


def test_many_threads_make_the_same_collections_and_objects(host: WebdavHost, folder: Path) -> None:
    data = {f"{n % 2:02x}/{n % 3}/{n}": os.urandom(30_000) for n in range(6)}
    errors: list[Exception] = []
    gate = threading.Barrier(4)

    def work() -> None:
        mine = WebdavHost("other", host.place, host.options)
        try:
            gate.wait()
            for key, each in data.items():
                location = put(mine, key, each)
                assert read(mine, location) == each
        except HostError as exc:
            # Replacing an object is remove and rename on some servers, two of which may meet:
            # a clean error, which is worth another try.
            if not exc.retryable and not isinstance(exc, ObjectNotFound | AccessDenied):
                errors.append(exc)
        except Exception as exc:  # noqa: BLE001 - shown by the assertion below
            errors.append(exc)
        finally:
            mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for key, each in data.items():
        put(host, key, each)
    assert files(folder) == data


def test_many_threads_share_one_host(host: WebdavHost, folder: Path) -> None:
    data = {pool_key(sha(bytes([n]))): os.urandom(20_000) for n in range(24)}
    errors: list[Exception] = []

    def work(part: int) -> None:
        try:
            for key in list(data)[part::4]:
                assert read(host, put(host, key, data[key])) == data[key]
        except Exception as exc:  # noqa: BLE001 - shown by the assertion below
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert files(folder) == data


def test_a_collection_removed_under_way_is_made_again(host: WebdavHost, folder: Path) -> None:
    host.delete([put(host, "6f/x/a", b"x")])
    (folder / "6f" / "x").rmdir()
    (folder / "6f").rmdir()
    while True:  # until the server has noticed
        try:
            list(host.list("6f/x/"))
            if not [1 for _ in host.list()] and not _is_there(host, "6f"):
                break
        except HostError:
            continue
    put(host, "6f/x/b", b"y")
    assert files(folder) == {"6f/x/b": b"y"}


def _is_there(host: WebdavHost, key: str) -> bool:
    try:
        host.stat(host.location(key))
    except ObjectNotFound as exc:
        return "is a collection" in str(exc)
    return True


@pytest.mark.parametrize(
    "options", [{}, {"user": USER, "password": "wrong"}, {"token": "abc.def"}], ids=str
)
def test_wrong_credentials_are_access_denied_and_never_shown(
    server: WebdavServer, collection: str, options: dict[str, str]
) -> None:
    host = open_host(host_url(server.endpoint, collection), options)
    calls: list[Callable[[], Any]] = [
        host.check,
        lambda: list(host.list()),
        lambda: host.stat(host.location("k")),
        lambda: next(host.get(host.location("k"))),
        lambda: host.delete([host.location("k")]),
        lambda: host.put("k", BytesSource(b"x"), sha256=sha(b"x")),
        lambda: host.put("a/k", BytesSource(b"x"), sha256=sha(b"x")),
    ]
    for call in calls:
        with pytest.raises(AccessDenied, match="see the options user, password") as caught:
            call()
        assert not caught.value.retryable
        for secret in ("wrong", "abc.def"):
            assert secret not in f"{caught.value}{host!r}"


def test_secrets_do_not_show_in_the_options() -> None:
    host = open_host("webdav+https://cloud.example.org/dav", {"user": "me", "password": "s3cret"})
    assert isinstance(host, WebdavHost)
    assert "s3cret" not in repr(host.options) + repr(host)
    token = open_host("webdav+https://cloud.example.org/dav", {"token": "s3cret"})
    assert isinstance(token, WebdavHost)
    assert "s3cret" not in repr(token.options)
    assert token.options.authorization == "Bearer s3cret"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 1}, "unknown option speed; a WebDAV host takes: aliases, ca_bundle"),
        ({"user": "me"}, "user and password must be given together"),
        ({"password": "s3cret"}, "user and password must be given together"),
        ({"user": "me", "password": "s3cret", "token": "t"}, "either a token or user"),
        ({"user": "a:b", "password": "s3cret"}, "no colon"),
        ({"user": "me", "password": "s3cret\r\nX: y"}, "password must be on one line"),
        ({"token": "s3cret\nX"}, "no bearer token"),
        ({"ca_bundle": "/nowhere"}, "there is no ca_bundle file"),
        ({"verify_tls": "maybe"}, "verify_tls must be true or false"),
        ({"time_limit": 0}, "time_limit must be a number of seconds above 0"),
        ({"time_limit": "soon"}, "time_limit must be a number"),
        ({"time_limit": "nan"}, "time_limit must be a number"),
        ({"time_limit": True}, "time_limit must be a number"),
        ({"aliases": ["https://example.org"]}, "not the URL of a WebDAV host"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        open_host("webdav+https://cloud.example.org/dav", options)
    assert "s3cret" not in str(caught.value)


def test_options_are_read_as_configuration_files_write_them() -> None:
    host = open_host(
        "webdav+https://cloud.example.org/dav", {"verify_tls": "false", "time_limit": "2.5"}
    )
    assert isinstance(host, WebdavHost)
    assert (host.options.verify_tls, host.options.time_limit) == (False, 2.5)
    assert host.options.verify is False


@pytest.mark.parametrize(
    "url",
    [
        "webdav+https://me:s3cret@cloud.example.org/dav",
        "webdav+https:///dav",
        "webdav+https://cloud.example.org:port/dav",
        "webdav+https://cloud.example.org/dav?x=s3cret",
        "webdav+https://cloud.example.org/dav#x",
        "webdav+https://cloud.example.org/a/../b",
        "webdav+https://cloud.example.org/a//b",
        "webdav+https://cloud.example.org/a%2Fb",
    ],
)
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_host(url, name="dav")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "webdav+https://cloud.example.org/d%C3%A4v/pool",
        "WEBDAV+HTTPS://Cloud.Example.ORG:443/d%c3%a4v/p%6Fol/",
        "webdav+https://cloud.example.org./däv/pool",
    ],
)
def test_all_spellings_of_a_url_are_one_place(url: str) -> None:
    host = open_host(url)
    assert host.location("a b") == "webdav+https://cloud.example.org/d%C3%A4v/pool/a%20b"
    assert host.owns("webdav+https://CLOUD.example.org:443/däv/%70ool/x")


def test_it_owns_only_what_lies_below_it() -> None:
    host = open_host(
        "webdav+https://cloud.example.org/dav",
        {"aliases": "webdav+http://old.example.org:8080/files"},
    )
    assert host.owns(host.location("a b/ü#?%"))
    assert host.owns("webdav+http://old.example.org:8080/files/6f/x")
    for location in (
        "webdav+https://cloud.example.org/dav",
        "webdav+https://cloud.example.org/dav/",
        "webdav+https://cloud.example.org/dav/x/",
        "webdav+https://cloud.example.org/dav-2/x",
        "webdav+https://cloud.example.org/dav/../x",
        "webdav+https://cloud.example.org/dav/%2e%2e/x",
        "webdav+https://cloud.example.org/dav/a%2Fb",
        "webdav+https://cloud.example.org/dav/a%00b",
        "webdav+https://cloud.example.org/dav/x?y",
        "webdav+https://cloud.example.org:8443/dav/x",
        "webdav+https://user@cloud.example.org/dav/x",
        "webdav+http://cloud.example.org/dav/x",
        "https://cloud.example.org/dav/x",
        "webdav+http://old.example.org/files/x",
        "",
    ):
        assert not host.owns(location), location


def test_a_host_at_the_root_of_a_server_and_one_with_an_ipv6_address() -> None:
    assert open_host("webdav+http://[::1]:8080").location("a/b") == "webdav+http://[::1]:8080/a/b"
    root = open_host("webdav+https://cloud.example.org/")
    assert root.location("k") == "webdav+https://cloud.example.org/k"
    assert root.owns("webdav+https://cloud.example.org/k")
    assert not root.owns("webdav+https://cloud.example.org/")


@pytest.mark.parametrize(
    ("href", "wanted"),
    [
        ("/dav/p/x", ("x",)),
        ("/dav/p/", ()),
        ("/dav/p", ()),
        ("x%20y", ("x y",)),
        ("http://server:8080/dav/p/6f/x", ("6f", "x")),
        ("HTTP://SERVER:8080/dav/p/x", ("x",)),
        ("//server:8080/dav/p/x", ("x",)),
        ("http://elsewhere/dav/p/x", None),
        ("https://server:8080/dav/p/x", None),
        ("http://user@server:8080/dav/p/x", None),
        ("file:///dav/p/x", None),
        ("http://[broken/dav/p/x", None),
        ("../x", None),
        ("/dav/p/../../etc", None),
        ("/dav/p/%2e%2e/x", None),
        ("/dav/p/a%2Fb", None),
        ("/dav/p/a%00", None),
        ("/dav/p//x", None),
        ("/dav/other/x", None),
        ("/dav/p/x?y", None),
    ],
)
def test_an_address_from_the_server_never_leads_out(
    href: str, wanted: tuple[str, ...] | None
) -> None:
    place = Place.parse("webdav+http://server:8080/dav/p")
    assert place.href(href, place.request_url((), collection=True)) == wanted


def test_signed_links_are_unsupported_before_any_io() -> None:
    host = open_host("webdav+http://127.0.0.1:1/nothing")
    with pytest.raises(Unsupported):
        host.signed_url(host.location("k"), expires=timedelta(hours=1))


def test_the_server_says_the_checksum_where_it_can(
    rclone_webdav: WebdavServer, wsgidav: WebdavServer
) -> None:
    told = []
    for server in (rclone_webdav, wsgidav):
        host = make_host(server, server.make_collection())
        seen(host.check)
        info = host.put("6f/x", BytesSource(DATA), sha256=sha(DATA))
        assert host.stat(info.location).checksum == info.checksum
        assert [each.checksum for each in host.list()] == [info.checksum]
        told.append(info.checksum and (info.checksum.kind, info.checksum.value))
        host.close()
    assert told == [("sha256", hashlib.sha256(DATA).hexdigest()), None]


def test_a_whole_pool_lives_on_it(host: WebdavHost, folder: Path, tmp_path: Path) -> None:
    world = World(tmp_path)
    datas = [content(n, 3000 + n) for n in range(12)]
    try:
        with world.pool([host], redundancy=1) as cm:
            results = cm.upload_many([world.file(data) for data in datas])
            assert [r.hash for r in results] == [sha(data) for data in datas]
            cm.cache.clear()
            assert Path(str(cm.download(sha(datas[0])))).read_bytes() == datas[0]
            cm.remove(sha(datas[1]))
            assert files(folder) == {
                pool_key(sha(data)): data for data in datas if data != datas[1]
            }
            cm.cache.clear()
        for path in world.root.glob("catalog.sqlite3*"):
            path.unlink()
        with world.pool([host], redundancy=1) as cm:
            assert cm.rebuild().files == 11
            for data in datas[2:]:
                assert Path(str(cm.download(sha(data)))).read_bytes() == data
    finally:
        world.close()
