"""The pool on real servers: S3, Azure Blob and PostgreSQL, with faults in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from manager.world import World, content, sha

import cloudmanager
from cloudmanager.errors import AccessDenied, ContainerNotFound
from cloudmanager.hosts import Host, open_host
from cloudmanager.hosts.azure import AzureHost
from cloudmanager.hosts.s3 import S3Host
from servers.proxy import (
    FaultProxy,
    hang,
    reset_before_reply,
    reset_mid_body,
    short_body,
    status,
    swallow_ack,
    wrong_bytes,
)

MIB = 1024 * 1024
Proxied = Callable[[str], FaultProxy]


def _s3(server: Any, bucket: str, name: str, *, endpoint: str | None = None, **more: Any) -> Host:
    options = {
        "endpoint_url": endpoint or server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        "addressing_style": "path",
    }
    return open_host(f"s3://{bucket}/pool", {**options, **more}, name=name)


def _azure(
    server: Any, container: str, name: str, *, endpoint: str | None = None, **more: Any
) -> Host:
    options = {
        "endpoint_url": endpoint or server.endpoint,
        "account": server.account,
        "account_key": server.key,
    }
    return open_host(f"azure://{container}/pool", {**options, **more}, name=name)


class Remote:
    """A host on a real server behind a proxy; `stored` looks at it behind the pool's back."""

    def __init__(self, kind: str, request: pytest.FixtureRequest, make_proxy: Proxied) -> None:
        self.kind = kind
        self.server = request.getfixturevalue("azurite" if kind == "azure" else f"{kind}_s3")
        self.proxy = make_proxy(self.server.endpoint)
        self.place = self.server.make_container() if kind == "azure" else self.server.make_bucket()

    def host(self, name: str = "remote", **more: Any) -> Host:
        make = _azure if self.kind == "azure" else _s3
        return make(self.server, self.place, name, endpoint=self.proxy.endpoint, **more)

    def _key(self, sha256: str) -> str:
        return f"pool/{sha256[:2]}/{sha256}"

    def stored(self) -> set[str]:
        if self.kind == "azure":
            client = self.server.client().get_container_client(self.place)
            return {blob.name.rsplit("/", 1)[1] for blob in client.list_blobs()}
        listing = self.server.client().list_objects_v2(Bucket=self.place)
        return {entry["Key"].rsplit("/", 1)[1] for entry in listing.get("Contents", [])}

    def overwrite(self, sha256: str, data: bytes) -> None:
        if self.kind == "azure":
            blob = self.server.client().get_blob_client(self.place, self._key(sha256))
            blob.upload_blob(data, overwrite=True)
        else:
            self.server.client().put_object(Bucket=self.place, Key=self._key(sha256), Body=data)

    def lose(self, sha256: str) -> None:
        if self.kind == "azure":
            self.server.client().get_blob_client(self.place, self._key(sha256)).delete_blob()
        else:
            self.server.client().delete_object(Bucket=self.place, Key=self._key(sha256))


@pytest.fixture(params=["moto", "rclone", "azure"])
def remote(request: pytest.FixtureRequest, fault_proxy: Proxied) -> Remote:
    return Remote(request.param, request, fault_proxy)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(world.database)
        return
    from cloudmanager.catalog import set_up

    url = request.getfixturevalue("postgres").make_database()
    set_up(url)
    yield url


def _round_trip(cm: cloudmanager.CloudManager, world: World, data: bytes) -> None:
    assert cm.upload(world.file(data)) == sha(data)
    cm.cache.clear()
    path = cm.download(sha(data))
    assert isinstance(path, Path)
    assert path.read_bytes() == data


def test_the_usage_example_runs_on_a_folder_a_bucket_and_a_container(
    world: World, moto_s3: Any, azurite: Any, database: str
) -> None:
    data = content(1, 100_000)
    path_to_file = str(world.file(data, "file"))
    folder = world.root / "folder"
    folder.mkdir()

    cm = cloudmanager.CloudManager(
        database,
        str(world.root / "path" / "to" / "storage") + "/",
        20 * (2**30),
        [
            str(folder),
            _s3(moto_s3, moto_s3.make_bucket(), "bucket"),
            _azure(azurite, azurite.make_container(), "container"),
        ],
    )

    sha256 = cm.upload(path_to_file)
    assert sha256 == sha(data)

    warm, down = cm.warm_up(sha256), cm.download(sha256)
    assert warm == down
    assert Path(str(warm)).read_bytes() == data

    assert cm.exists(sha256) is True
    assert cm.on_cache(sha256) is True

    assert cm.usage_ratio() == len(data) / (20 * 2**30)
    info = cm.info(sha256)
    assert info is not None
    assert {u.host for u in info.uploads if u.status == "stored"} == {
        str(folder),
        "bucket",
        "container",
    }
    cm.close()
    Path(path_to_file).unlink()

    again = cloudmanager.CloudManager(
        database, world.root / "elsewhere", "1GiB", [_no_host_but(info, "container", azurite)]
    )
    path = again.download(sha256)
    assert isinstance(path, Path)
    assert path.read_bytes() == data
    again.close()


def _no_host_but(info: Any, name: str, azurite: Any) -> Host:
    (location,) = [u.location for u in info.uploads if u.host == name]
    container = location.split("/")[4]
    return _azure(azurite, container, "under another name")


@pytest.mark.parametrize("size", [0, 1000, 3 * MIB, 33 * MIB])
def test_files_of_every_size_come_back_and_the_meter_counts_what_the_proxy_sees(
    world: World, remote: Remote, size: int
) -> None:
    data = content(2, size)
    with world.pool([remote.host()]) as cm:
        up, down = remote.proxy.bytes_up, remote.proxy.bytes_down
        _round_trip(cm, world, data)
        assert remote.stored() == {sha(data)}
        assert cm.total_outgoing() == cm.current_outgoing() == size
        assert cm.total_incoming() == cm.current_incoming() == size
        # Bodies of control requests (lists of blocks, completions) are no payload.
        assert size <= remote.proxy.bytes_up - up <= size + 64 * 1024
        assert size <= remote.proxy.bytes_down - down <= size + 64 * 1024


def test_the_same_content_travels_once(world: World, remote: Remote) -> None:
    data = content(3, 50_000)
    with world.pool([remote.host()]) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        before = remote.proxy.bytes_up
        assert cm.upload(world.file(data)) == sha(data)
        assert remote.proxy.bytes_up == before
        remote.lose(sha(data))
        assert cm.upload(world.file(data)) == sha(data)
        assert remote.stored() == {sha(data)}
        remote.overwrite(sha(data), b"too short")
        _round_trip(cm, world, data)


@pytest.mark.parametrize(
    "fault",
    [
        reset_before_reply(),
        swallow_ack(),
        status(503),
        status(500),
        status(429),
        reset_mid_body(1000),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.code}",
)
def test_a_transient_fault_on_the_way_up_is_overcome(
    world: World, remote: Remote, fault: Any
) -> None:
    data = content(4, 20_000)
    with world.pool([remote.host()]) as cm:
        remote.proxy.plan(fault, match=lambda method, _path, _headers: method == "PUT")
        (result,) = cm.upload_many([world.file(data)])
        assert result.hosts == ("remote",)
        assert remote.stored() == {sha(data)}
        cm.cache.clear()
        assert cm.download(sha(data))


_DOWN_FAULTS = [
    reset_before_reply(),
    status(503),
    status(500),
    reset_mid_body(1000),
    short_body(),
    wrong_bytes(),
]


def _fault_name(fault: Any) -> str:
    return f"{fault.kind}-{fault.code}"


@pytest.mark.parametrize("fault", _DOWN_FAULTS, ids=_fault_name)
def test_a_fault_on_the_way_down_never_gives_wrong_bytes_and_another_host_has_them(
    world: World, remote: Remote, fault: Any
) -> None:
    _download_through(world, remote, fault, 20_000)


@pytest.mark.parametrize("fault", [reset_before_reply(), wrong_bytes()], ids=_fault_name)
def test_a_fault_while_ranges_come_down_never_gives_wrong_bytes(
    world: World, request: pytest.FixtureRequest, fault_proxy: Proxied, fault: Any
) -> None:
    _download_through(world, Remote("moto", request, fault_proxy), fault, 33 * MIB)


@pytest.mark.long
@pytest.mark.parametrize("fault", _DOWN_FAULTS, ids=_fault_name)
def test_every_fault_of_every_server_while_ranges_come_down(
    world: World, remote: Remote, fault: Any
) -> None:
    _download_through(world, remote, fault, 33 * MIB)


def _download_through(world: World, remote: Remote, fault: Any, size: int) -> None:
    """Download while every answer of the preferred host is spoiled, and again afterwards."""
    data = content(5, size)
    with world.pool([remote.host(), world.folder("good")]) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        cm.cache.clear()
        remote.proxy.plan(fault, match=lambda method, _path, _headers: method == "GET", times=None)
        met = len(remote.proxy.requests)
        path = cm.download(sha(data))
        assert len(remote.proxy.requests) > met
        assert isinstance(path, Path)
        assert path.read_bytes() == data
        remote.proxy.clear()
        cm.cloud_sync()
        assert remote.stored() == {sha(data)}
        cm.cache.clear()
        target = world.root / "target"
        assert cm.download(sha(data), target)
        assert target.read_bytes() == data


def test_a_dead_server_is_not_asked_for_every_file(world: World, remote: Remote) -> None:
    paths = [world.file(content(n, 100)) for n in range(80)]
    with world.pool([remote.host(), world.folder("good")], jobs=4) as cm:
        remote.proxy.down()
        before = remote.proxy.connections
        results = list(cm.upload_many(paths))
        assert {result.hosts for result in results} == {("good",)}
        assert remote.proxy.connections - before <= 4 * 3 * 2
        assert cm.sync_status().hosts == {"remote": 80}
        remote.proxy.up()
        assert cm.cloud_sync().delivered == 80
    assert len(remote.stored()) == 80


def test_a_server_that_hangs_is_given_up_and_the_file_is_stored_elsewhere(
    world: World, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (S3Host, AzureHost):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "time_limit", 0.5)
    data = content(6, 1000)
    with world.pool([remote.host(), world.folder("good")], redundancy=1) as cm:
        remote.proxy.plan(hang(60), times=None)
        (result,) = cm.upload_many([world.file(data)])
        assert result.hosts == ("good",)


def test_wrong_credentials_are_named_and_the_file_waits_pinned(
    world: World, remote: Remote
) -> None:
    secret = "d3JvbmctYW5kLXNlY3JldA=="
    wrong = {"account_key": secret} if remote.kind == "azure" else {"secret_access_key": secret}
    data = content(7, 1000)
    with world.pool([remote.host(**wrong)]) as cm:
        (result,) = cm.upload_many([world.file(data)])
        assert result.hash == sha(data)
        assert result.waiting == ("remote",)
        assert isinstance(result.error, AccessDenied)
        assert secret not in str(result.error)
        assert "\n" not in str(result.error)
        assert cm.cloud_sync().waiting == 1
    with world.pool([remote.host()]) as cm:
        assert cm.cloud_sync().delivered == 1
    assert remote.stored() == {sha(data)}


def test_a_missing_bucket_is_named_and_the_file_goes_to_another_host(
    world: World, remote: Remote
) -> None:
    remote.place = "no-such-bucket-anywhere"
    data = content(8, 1000)
    with world.pool([remote.host(), world.folder("good")]) as cm:
        (result,) = cm.upload_many([world.file(data)])
        assert result.hosts == ("good",)
        assert result.waiting == ("remote",)
        (waiting,) = cm.upload_queue_info()
        assert "no-such-bucket-anywhere" in str(waiting.error)
        with pytest.raises(ContainerNotFound):
            cm.rebuild()


def test_a_lost_catalog_is_rebuilt_from_the_server(
    world: World, remote: Remote, database: str
) -> None:
    datas = {f"näme {n}.txt": content(n, 100 * n) for n in range(12)}
    with world.pool([remote.host()], database=database) as cm:
        paths = [world.file(data, name) for name, data in datas.items()]
        assert all(result.hash for result in cm.upload_many(paths))
    with world.pool(
        [remote.host()], database=world.root / "new.sqlite3", storage=world.root / "s"
    ) as cm:
        assert cm.rebuild().new_files == 12
        for name, data in datas.items():
            info = cm.info(sha(data))
            assert info is not None
            assert info.file.name == name
            path = cm.download(sha(data))
            assert isinstance(path, Path)
            assert path.read_bytes() == data


def test_remove_deletes_the_objects_on_the_server(world: World, remote: Remote) -> None:
    data = content(9, 1000)
    with world.pool([remote.host()]) as cm:
        cm.upload(world.file(data))
        remote.proxy.down()
        assert cm.remove(sha(data)) is False
        remote.proxy.up()
        assert cm.cloud_sync().removed == 1
        assert not cm.exists(sha(data))
    assert remote.stored() == set()


def test_open_reads_ranges_from_the_server(world: World, remote: Remote) -> None:
    data = content(10, 33 * MIB)
    with world.pool([remote.host()]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        before = remote.proxy.bytes_down
        with cm.open(sha(data)) as file:
            for offset in (20 * MIB, 0, 33 * MIB - 100):
                file.seek(offset)
                assert file.read(100) == data[offset : offset + 100]
            assert remote.proxy.bytes_down - before <= 4 * MIB
            file.seek(0)
            assert file.read() == data


def test_two_pools_share_a_catalog_but_not_a_cache(
    world: World, database: str, moto_s3: Any
) -> None:
    bucket = moto_s3.make_bucket()
    data = content(11, 5000)
    with (
        world.pool([_s3(moto_s3, bucket, "s3")], database=database) as one,
        world.pool(
            [_s3(moto_s3, bucket, "s3")], database=database, storage=world.root / "two"
        ) as two,
    ):
        assert one.upload(world.file(data)) == sha(data)
        assert two.exists(sha(data))
        assert not two.on_cache(sha(data))
        path = two.download(sha(data))
        assert isinstance(path, Path)
        assert path.read_bytes() == data
        assert two.remove(sha(data)) is True
        assert not one.exists(sha(data))
        assert one.upload(world.file(data)) == sha(data)
        assert two.exists(sha(data))
