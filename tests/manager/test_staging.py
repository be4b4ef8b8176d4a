"""Staging what a pipe delivers, when the cache's disk fills under it."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest
from manager.world import World, content, sha

from cloudmanager.manager import staging


class Filling(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 0

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        taken = min(len(view), self.room - self.tell())
        if taken <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(view[:taken])


@pytest.mark.parametrize("room", [0, 1, 1_500_000, 3_000_000])
def test_a_full_disk_under_the_cache_does_not_lose_what_a_pipe_delivered(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int
) -> None:
    data = content(5, 4_000_000)

    def open_new(path: Path, buffering: int = 0) -> BinaryIO:
        assert buffering == 0
        file = Filling(path, "wb")
        file.room = room
        return file  # type: ignore[return-value]

    monkeypatch.setattr(staging, "_open_new", open_new)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one = world.folder("one")
    with world.pool([one]) as cm:
        result = cm.upload_stream(io.BytesIO(data), "piped")
        assert result.hash == sha(data)
        assert one.path(sha(data)).read_bytes() == data
        assert not cm.on_cache(sha(data))
        assert cm.used_space() == 0
    assert [name for name in os.listdir(tmp_path) if name.startswith("cloudmanager-")] == []


def test_a_pipe_that_breaks_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            if not data:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return data

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with world.pool([world.folder("one")]) as cm:
        with pytest.raises(OSError, match="Input/output"):
            cm.upload_stream(Broken(content(6, 2_500_000)), "piped")
        assert cm.used_space() == 0
        assert cm.totals() == (0, 0)
