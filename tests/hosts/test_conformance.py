"""The conformance kit on every built-in host, against real servers."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.errors import HostError
from cloudmanager.hosts import open_host
from cloudmanager.hosts.azure import AzureHost
from cloudmanager.hosts.base import Host
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.hosts.http import HttpHost
from cloudmanager.hosts.s3 import S3Host
from cloudmanager.hosts.webdav import WebdavHost
from cloudmanager.testing import HostConformance
from servers.webdav import PASSWORD, USER, WebdavServer, host_url

CREDENTIALS = {"user": USER, "password": PASSWORD}
NOBODY = "http://127.0.0.1:9"
"""Port 9, "discard": nothing listens there."""


class TestFolder(HostConformance):
    capabilities = FolderHost.capabilities

    @pytest.fixture
    def host(self, tmp_path: Path) -> Iterator[Host]:
        (tmp_path / "root").mkdir()
        host = open_host(str(tmp_path / "root"), name="folder")
        yield host
        host.close()

    def open_unreachable(self) -> Host:
        return open_host("/nowhere/not mounted", name="unmounted")

    def path(self, host: Host, key: str) -> Path:
        assert isinstance(host, FolderHost)
        return host.root / key

    def raw_read(self, host: Host, key: str) -> bytes:
        return self.path(host, key).read_bytes()

    def raw_write(self, host: Host, key: str, data: bytes) -> None:
        path = self.path(host, key)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # objects are read-only
        path.write_bytes(data)


class S3(HostConformance):
    """One prefix of a bucket of its own for every test."""

    capabilities = S3Host.capabilities
    keeps_filename = True
    secrets = ("the-secret-of-nobody",)
    server: Any
    bucket: str

    @pytest.fixture
    def host(self, server: Any) -> Iterator[Host]:
        self.server, self.bucket = server, server.make_bucket()
        host = self.open(server.endpoint, server.access_key, server.secret_key)
        yield host
        host.close()

    def open(self, endpoint: str, access_key: str, secret_key: str) -> Host:
        options = {
            "endpoint_url": endpoint,
            "access_key_id": access_key,
            "secret_access_key": secret_key,
            "region": "us-east-1",
        }
        bucket = getattr(self, "bucket", "bucket")
        return open_host(f"s3://{bucket}/pool", options, name="store")

    def open_unreachable(self) -> Host:
        return self.open(NOBODY, "nobody", "the-secret-of-nobody")

    def raw_read(self, host: Host, key: str) -> bytes:
        del host
        answer = self.server.client().get_object(Bucket=self.bucket, Key=f"pool/{key}")
        data: bytes = answer["Body"].read()
        return data

    def raw_write(self, host: Host, key: str, data: bytes) -> None:
        del host
        self.server.client().put_object(Bucket=self.bucket, Key=f"pool/{key}", Body=data)


class TestS3OnMoto(S3):
    many = 1_050  # a page has 1,000
    # With its authentication on, moto answers every signed link with 500. The other two follow.
    test_anybody_can_follow_a_signed_link = None

    @pytest.fixture
    def server(self, moto_s3: Any) -> Any:
        self.secrets = (moto_s3.secret_key,)
        return moto_s3


class TestS3OnRclone(S3):
    # For a moment rclone serves a replaced object with the size of the old one, and breaks off;
    # the retry policy gets over it, a single try does not. The other two show what the host does.
    test_an_object_is_replaced = None

    @pytest.fixture
    def server(self, rclone_s3: Any) -> Any:
        self.secrets = (rclone_s3.secret_key,)
        return rclone_s3


class TestS3OnStrictServer(S3):
    @pytest.fixture
    def server(self, strict_s3: Any) -> Any:
        self.secrets = (strict_s3.secret_key,)
        return strict_s3


class TestAzure(HostConformance):
    capabilities = AzureHost.capabilities
    keeps_filename = True
    secrets = ("bm9ib2R5J3Mgc2VjcmV0",)
    many = 300
    # Azurite orders by UTF-16, which the host notices and refuses to take for a listing.
    unordered = tuple(key for key in HostConformance.unordered if key != "\U0001f600")

    @pytest.fixture
    def host(self, azurite: Any) -> Iterator[Host]:
        self.container = azurite.client().get_container_client(azurite.make_container())
        self.secrets = (azurite.key,)
        url = f"azure+{azurite.endpoint}/{self.container.container_name}/pool"
        host = open_host(url, {"account_key": azurite.key}, name="box")
        yield host
        host.close()

    def open_unreachable(self) -> Host:
        url = f"azure+{NOBODY}/nobody/container/pool"
        return open_host(url, {"account_key": self.secrets[0]}, name="box")

    def raw_read(self, host: Host, key: str) -> bytes:
        del host
        data: bytes = self.container.download_blob(f"pool/{key}").readall()
        return data

    def raw_write(self, host: Host, key: str, data: bytes) -> None:
        del host
        self.container.upload_blob(f"pool/{key}", data, overwrite=True)


class Webdav(HostConformance):
    """One collection of its own for every test."""

    capabilities = WebdavHost.capabilities
    secrets = (PASSWORD,)
    server: WebdavServer
    collection: str

    @pytest.fixture
    def host(self, server: WebdavServer) -> Iterator[Host]:
        self.server, self.collection = server, server.make_collection()
        host = open_host(host_url(server.endpoint, self.collection), CREDENTIALS, name="dav")
        deadline = time.monotonic() + 30
        while True:  # rclone sees what was made on its disk a moment later
            try:
                host.check()
                break
            except HostError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield host
        host.close()

    def open_unreachable(self) -> Host:
        return open_host(f"webdav+{NOBODY}/pool", CREDENTIALS, name="dav")

    def path(self, key: str) -> Path:
        return self.server.directory / self.collection / key

    def raw_read(self, host: Host, key: str) -> bytes:
        del host
        return self.path(key).read_bytes()


class TestWebdavOnRclone(Webdav):
    # While a file is being sent, rclone ends its listings with the text of an error, after
    # the document; the host refuses them. wsgidav shows what the host does.
    test_a_partly_written_object_is_invisible = None
    # As with S3: the size of what was replaced is remembered for a moment.
    test_an_object_is_replaced = None

    @pytest.fixture
    def server(self, rclone_webdav: WebdavServer) -> WebdavServer:
        return rclone_webdav


class TestWebdavOnWsgidav(Webdav):
    # It misreads some encoded names in a MOVE; the host notices and says so.
    keys = tuple(key for key in HostConformance.keys if not set(key) & set("?#;&=@!$'()*,"))

    @pytest.fixture
    def server(self, wsgidav: WebdavServer) -> WebdavServer:
        return wsgidav


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without ranges: the whole file comes with status 200."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args


class TestHttp(HostConformance):
    """Reads only; a server of the standard library, which ignores ranges."""

    capabilities = HttpHost.capabilities
    secrets = ("Bearer secret-of-the-tests",)

    @pytest.fixture
    def host(self, tmp_path: Path) -> Iterator[Host]:
        self.folder = tmp_path
        handler = functools.partial(_Quiet, directory=str(tmp_path))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        host = self.open(f"http://127.0.0.1:{server.server_port}/files")
        yield host
        host.close()
        server.shutdown()
        server.server_close()

    def open(self, url: str) -> Host:
        return open_host(url, {"headers": {"Authorization": self.secrets[0]}}, name="web")

    def open_unreachable(self) -> Host:
        return self.open(f"{NOBODY}/files")

    def arrange(self, host: Host, key: str, data: bytes) -> str:
        path = self.folder / "files" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return host.location(key)
