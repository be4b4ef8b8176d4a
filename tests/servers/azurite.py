"""Azurite, Microsoft's emulator of Azure Blob Storage: signatures, SAS, Content-MD5."""

from __future__ import annotations

import functools
import uuid

from azure.storage.blob import BlobServiceClient

from servers.process import ServerMissing, server_process
from servers.programs import azurite_program, node_program

__all__ = ["Azurite"]

ACCOUNT = "devstoreaccount1"
# The published key of every Azurite: no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite:
    """A running Azurite with one account, in memory."""

    account = ACCOUNT
    key = KEY

    def __init__(self) -> None:
        azurite, node = azurite_program(), node_program()
        if azurite is None or node is None:
            what = "Azurite" if azurite is None else "node, which Azurite needs,"
            raise ServerMissing(what, "python tests/install_servers.py")
        self._process = server_process(
            "azurite",
            lambda port, _: [
                *(str(node), str(azurite.resolve())),
                *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
                # Its own deletes are ten times slower on disk.
                *("--silent", "--inMemoryPersistence", "--disableTelemetry"),
                # The SDK is usually newer than the versions that Azurite knows by name.
                "--skipApiVersionCheck",
            ],
        )
        self.endpoint = f"http://127.0.0.1:{self._process.port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.endpoint};"
        )

    def make_container(self) -> str:
        """Create an empty container and answer with its name, which no other test has."""
        name = f"container-{uuid.uuid4().hex[:20]}"
        self._client.create_container(name)
        return name

    def client(self) -> BlobServiceClient:
        """A new client of the SDK, to arrange and inspect behind a host's back."""
        return BlobServiceClient.from_connection_string(self.connection_string)

    @functools.cached_property
    def _client(self) -> BlobServiceClient:
        return self.client()

    def stop(self) -> None:
        self._process.stop()
