"""The pool in twenty lines: python examples/usage.py [FILE]

Everything is kept in a temporary folder that goes when the program ends.
"""

import sys
import tempfile
from pathlib import Path

import cloudmanager

path = sys.argv[1] if len(sys.argv) > 1 else __file__

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for host in ("one", "two"):
        (folder / host).mkdir()

    cm = cloudmanager.CloudManager(
        folder / "database.sqlite3",  # Database of the stored files' information
        folder / "storage",  # Cached files will be stored here
        20 * (2**30),  # 20 GiB capacity
        # Hosts: "s3://bucket/prefix" and "azure://container/prefix" work as well
        [folder / "one", folder / "two"],
    )

    sha256 = cm.upload(path)  # returns hash of the uploaded file, or False
    assert sha256

    print("warm_up    ", cm.warm_up(sha256))  # puts the corresponding file in the cache
    print("download   ", cm.download(sha256))  # the same: its path there

    print("exists     ", cm.exists(sha256))  # whether the database knows the file
    print("on_cache   ", cm.on_cache(sha256))  # whether the file is in the cache

    print("usage_ratio", cm.usage_ratio())  # the used fraction of the cache

    with cm.open(sha256) as file:
        assert file.read() == Path(path).read_bytes()

    cm.close()  # cleans up everything
