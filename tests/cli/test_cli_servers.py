"""The command line with S3 and Azure behind it."""

from __future__ import annotations

import hashlib
import os
import signal
import urllib.request
from collections.abc import Callable

import pytest
from cli_program import Done, Program, wait_until

from servers.azurite import Azurite
from servers.moto import MotoS3
from servers.proxy import FaultProxy


def s3_table(server: MotoS3, bucket: str, **other: str) -> str:
    options = {
        "url": f"s3+{server.endpoint}/{bucket}/pool",
        "region": "us-east-1",
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        **other,
    }
    return "[hosts.cloud]\n" + "".join(f'{key} = "{value}"\n' for key, value in options.items())


def test_one_file_lies_on_a_folder_in_s3_and_in_azure_and_comes_back_from_each(
    program: Program, moto_s3: MotoS3, azurite: Azurite
) -> None:
    bucket, container = moto_s3.make_bucket(), azurite.make_container()
    program.configure(
        "redundancy = 3\n"
        + s3_table(moto_s3, bucket)
        + f'[hosts.blobs]\nurl = "azure://{container}/pool"\n'
        + 'connection_string = { env = "BLOBS" }\n'
        + f'[hosts.disk]\nurl = "{program.data / "disk"}"\ncreate = true\n'
    )
    program.environment["BLOBS"] = azurite.connection_string
    data = os.urandom(300_000)
    sha256 = program.file("photo.jpg", data)
    (told,) = program("--json", "upload", "photo.jpg").objects
    assert sorted(told["hosts"]) == ["blobs", "cloud", "disk"]
    found = program("--json", "host", "test").objects
    assert [(each["host"], each["ok"]) for each in found] == [
        ("cloud", True),
        ("blobs", True),
        ("disk", True),
    ]
    assert program("host", "test", "cloud").lines[0].endswith("put 39 B, get, delete: all good")
    for name in ("cloud", "blobs", "disk"):
        # Another cache, and only that host: the bytes can come from nowhere else.
        cache = program.home / f"cache-{name}"
        done = program("--storage", cache, "--host", name, "cat", sha256)
        assert done.stdout == data

    # With its authentication on, moto answers a signed link with 500: Azurite's is followed.
    (url,) = program("--host", "blobs", "link", sha256, "--expires", "15m").lines
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == data
        assert "photo.jpg" in answer.headers["Content-Disposition"]
    (told,) = program("--json", "link", sha256).objects
    assert told["hash"] == sha256
    assert told["url"].startswith(f"{moto_s3.endpoint}/{bucket}/pool/")
    assert "X-Amz-Signature" in told["url"]

    for path in program.data.glob("catalog.sqlite3*"):
        path.unlink()
    (told,) = program("--json", "rebuild").objects
    assert told == {
        "objects": {"cloud": 1, "blobs": 1, "disk": 1},
        "files": 1,
        "new_files": 1,
    }
    (known,) = program("--json", "info", sha256).objects
    assert known["name"] == "photo.jpg"
    assert len(known["uploads"]) == 3


def kept_and_delivered(program: Program, failed: Done, sha256: str, right: str) -> None:
    """What no host took is in the cache, and `sync` delivers it once the settings are right."""
    assert failed.lines == [f"{sha256}  a"]
    assert program("cat", sha256).stdout == b"precious"
    program.configure(right)
    assert program("sync").lines == ["1 copies sent, 0 objects deleted, 0 wait"]
    program("cache", "clear")
    assert program("cat", sha256).stdout == b"precious"


def test_hosts_that_refuse_are_missing_or_are_down_have_their_codes_and_lose_nothing(
    program: Program, another: Callable[[str], Program], moto_s3: MotoS3
) -> None:
    right = s3_table(moto_s3, moto_s3.make_bucket())
    sha256 = program.file("a", "precious")

    # Tries for a while, so it does that beside the others.
    unlucky = another("unlucky")
    unlucky.file("a", "precious")
    unlucky.configure(right.replace(moto_s3.endpoint, "http://127.0.0.1:9"))
    trying = unlucky.start("upload", "a")

    wrong = "hunter2" * 5
    program.configure(right.replace(moto_s3.secret_key, wrong))
    done = program("upload", "a", code=7)
    why, waits = done.stderr.splitlines()
    assert "the secret access key is wrong" in why
    assert waits.startswith("cloudmanager: 1 copy waits for host cloud")
    refused = program("--debug", "host", "test", code=7)
    assert wrong not in done.stderr + refused.stderr
    kept_and_delivered(program, done, sha256, right)

    missing = another("missing")
    missing.file("a", "precious")
    missing.configure(s3_table(moto_s3, "no-such-bucket"))
    done = missing("upload", "a", code=4)
    assert "no-such-bucket" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert "no-such-bucket" in missing("host", "test", code=4).complaint
    assert "no-such-bucket" in missing("rebuild", code=4).complaint
    kept_and_delivered(missing, done, sha256, right)

    done = unlucky.end(trying)
    assert done.code == 5
    why, waits = done.stderr.splitlines()
    assert "cannot connect" in why
    assert waits.startswith("cloudmanager: 1 copy waits for host cloud")
    kept_and_delivered(unlucky, done, sha256, right)


def test_what_was_begun_and_never_finished_is_aborted(program: Program, moto_s3: MotoS3) -> None:
    bucket = moto_s3.make_bucket()
    program.configure(s3_table(moto_s3, bucket))
    client = moto_s3.client()
    key = "pool/ab/" + "ab" * 32
    client.create_multipart_upload(Bucket=bucket, Key=key)
    (told,) = program("--json", "host", "clean", "cloud", "--older-than", "0s").objects
    assert told["host"] == "cloud"
    assert "ab" * 32 in told["cleaned"]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


def test_credentials_of_the_configuration_win_over_the_environment(
    program: Program, moto_s3: MotoS3
) -> None:
    program.configure(s3_table(moto_s3, moto_s3.make_bucket()))
    program.file("a", "x")
    leak = {"AWS_SESSION_TOKEN": "leaked", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    program("upload", "a", env=leak)


@pytest.mark.parametrize("size", [40_000, 3_000_000], ids=["many small files", "a large one"])
def test_a_signal_ends_transfers_that_are_under_way_and_a_rerun_completes_them(
    program: Program,
    moto_s3: MotoS3,
    fault_proxy: Callable[[str], FaultProxy],
    size: int,
) -> None:
    proxy = fault_proxy(moto_s3.endpoint)
    table = s3_table(moto_s3, moto_s3.make_bucket())
    program.configure(table.replace(moto_s3.endpoint, proxy.endpoint))
    names = [f"f{number}" for number in range(4_000_000 // size)]
    hashes = {program.file(f"tree/{name}", os.urandom(size)) for name in names}
    proxy.limit(100_000)
    process = program.start("upload", "-r", "tree")
    wait_until(lambda: proxy.bytes_up > 50_000, process)
    process.send_signal(signal.SIGINT)
    done = program.end(process)
    assert (done.code, done.stderr) == (130, "cloudmanager: interrupted\n")

    proxy.limit(None)
    stored = program("upload", "-r", "tree", "--manifest", "m")
    assert {line[:64] for line in stored.lines} == hashes
    program("cache", "clear")
    proxy.limit(100_000)
    before = proxy.bytes_down
    process = program.start("download", "--manifest", "m", "-o", "out")
    wait_until(lambda: proxy.bytes_down > before + 50_000, process)
    process.send_signal(signal.SIGTERM)
    done = program.end(process)
    assert (done.code, done.stderr) == (143, "cloudmanager: terminated\n")
    for path in (program.work / "out/tree").glob("f*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in hashes

    proxy.limit(None)
    assert len(program("download", "--manifest", "m", "-o", "out").lines) == len(names)
    (state,) = program("--json", "status").objects
    assert state["cache_used"] <= size * len(names)
    assert not list((program.data / "cache/tmp").iterdir())
