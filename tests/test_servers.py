"""The servers of the tests start, keep what they are given, and end for certain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from botocore.exceptions import ClientError

from servers.azurite import Azurite
from servers.moto import MotoS3
from servers.postgres import Postgres
from servers.process import ServerFailed, server_process
from servers.rclone import RcloneS3
from servers.s3_server import S3Server

# -- processes ---------------------------------------------------------------------------


def serve_files(port: int, _: Path) -> list[str]:
    return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]


def ended(pid: int) -> bool:
    """Whether a process that is no child of this one ends within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_and_its_directory_are_gone_when_it_is_stopped() -> None:
    process = server_process("files", serve_files)
    (process.directory / "a").write_text("b")
    assert not refuses(process.port)
    process.stop()
    assert refuses(process.port)
    assert not process.directory.exists()
    process.stop()


def test_a_server_ends_when_the_process_that_started_it_is_killed() -> None:
    code = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from test_servers import serve_files
from servers.process import server_process
process = server_process("files", serve_files)
print(process.pid, process.port, process.directory, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, port, directory = owner.stdout.readline().split()
        assert not refuses(int(port))
        owner.kill()
    assert ended(int(pid))
    assert refuses(int(port))
    assert not Path(directory).exists()


def test_a_server_that_does_not_want_to_end_is_made_to() -> None:
    code = """
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True: listener.accept()
"""
    process = server_process(
        "stubborn", lambda port, _: [sys.executable, "-c", code, str(port)], patience=0.1
    )
    process.stop()
    assert refuses(process.port)


def test_a_server_that_fails_tells_its_reason() -> None:
    with pytest.raises(ServerFailed, match="no such luck"):
        server_process("unlucky", lambda *_: [sys.executable, "-c", "exit('no such luck')"])


def run_pytest(
    folder: Path, test: str, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a test file with the rules of this folder about what may be missing."""
    (folder / "test_it.py").write_text(test)
    (folder / "conftest.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from servers.process import ServerMissing
from servers.required import pytest_sessionfinish, running

def start():
    raise ServerMissing("Azurite", "say please")

@pytest.fixture
def azurite():
    yield from running(start)
"""
    )
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "CLOUDMANAGER_TEST_REQUIRE_SERVERS")
        and not name.startswith("PYTEST_")
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *options, str(folder)],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [
        ({}, "1 skipped in"),
        ({"CI": "false"}, "1 skipped in"),
        ({"CI": "true"}, "1 error in"),
        ({"CLOUDMANAGER_TEST_REQUIRE_SERVERS": "1"}, "1 error in"),
    ],
)
def test_a_server_that_is_missing_skips_by_name_and_fails_where_it_is_required(
    tmp_path: Path, environment: dict[str, str], outcome: str
) -> None:
    run = run_pytest(tmp_path, "def test_it(azurite): pass\n", environment)
    assert "Azurite is not installed: say please" in run.stdout
    assert outcome in run.stdout


@pytest.mark.parametrize("workers", ["0", "1"])
def test_where_everything_is_required_a_skipped_test_fails_the_run(
    tmp_path: Path, workers: str
) -> None:
    test = "import pytest\ndef test_a(): pytest.skip('why')\ndef test_b(): pass\n"
    assert run_pytest(tmp_path, test, {}, "-n", workers).returncode == 0
    run = run_pytest(tmp_path, test, {"CI": "true"}, "-n", workers)
    assert run.returncode == 1
    assert "1 skipped, and here nothing may be" in run.stdout
    only_passing = run_pytest(tmp_path, test, {"CI": "true"}, "-n", workers, "-k", "test_b")
    assert only_passing.returncode == 0


# -- the servers that are installed ------------------------------------------------------


@pytest.fixture(params=["moto_s3", "rclone_s3", "strict_s3"])
def s3(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


def code_of(call: Callable[[], object]) -> str:
    """S3's code of the error that a call of boto3 ends with."""
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def test_every_s3_server_keeps_an_object_and_knows_its_owner(s3: S3Server) -> None:
    bucket = s3.make_bucket()
    assert bucket != s3.make_bucket()
    s3.client().put_object(Bucket=bucket, Key="a/b c", Body=b"data")
    assert s3.client().get_object(Bucket=bucket, Key="a/b c")["Body"].read() == b"data"
    thief = S3Server(s3.endpoint, s3.access_key, "guessed").client()
    assert code_of(lambda: thief.get_object(Bucket=bucket, Key="a/b c")) == "SignatureDoesNotMatch"
    nobody = S3Server(s3.endpoint, "NOSUCHKEY", s3.secret_key).client()
    code = code_of(lambda: nobody.get_object(Bucket=bucket, Key="a/b c"))
    assert code in ("InvalidAccessKeyId", "AccessDenied")


def test_rclone_shows_its_objects_as_files(rclone_s3: RcloneS3) -> None:
    bucket = rclone_s3.make_bucket()
    rclone_s3.client().put_object(Bucket=bucket, Key="a/b", Body=b"data")
    assert (rclone_s3.directory / bucket / "a" / "b").read_bytes() == b"data"


def test_moto_refuses_to_create_twice(moto_s3: MotoS3) -> None:
    bucket = moto_s3.make_bucket()
    put = moto_s3.client().put_object
    put(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")
    code = code_of(lambda: put(Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*"))
    assert code == "PreconditionFailed"


def test_azurite_keeps_a_blob(azurite: Azurite) -> None:
    container = azurite.make_container()
    assert container != azurite.make_container()
    client = azurite.client().get_container_client(container)
    client.upload_blob("a", b"data")
    assert client.download_blob("a").readall() == b"data"
    assert urlsplit(azurite.endpoint).path == f"/{azurite.account}"


def test_every_database_is_new(postgres: Postgres) -> None:
    urls = [postgres.make_database() for _ in range(2)]
    assert urls[0] != urls[1]
    for url in urls:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("CREATE TABLE only_here (a int)")
