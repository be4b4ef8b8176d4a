"""Where credentials come from, how they are renewed, and that none of them goes astray."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.errors import AccessDenied
from cloudmanager.hosts import open_host
from cloudmanager.hosts.base import Host
from cloudmanager.source import BytesSource
from servers import proxy as faults


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return


def use(host: Host) -> None:
    """Every engine once: obstore up and down, boto3 up, a range down, and a list."""
    for key in ("a/b", "a c"):
        location = host.put(
            key, BytesSource(b"x"), sha256=hashlib.sha256(b"x").hexdigest()
        ).location
        assert b"".join(host.get(location)) == b"x"
        assert b"".join(host.get(location, length=1)) == b"x"
    assert [info.key for info in host.list()] == ["a c", "a/b"]


def explicit(server: Any) -> dict[str, str]:
    return {
        "endpoint_url": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
    }


@pytest.mark.parametrize(
    "leak",
    [
        {"AWS_SESSION_TOKEN": "leaked"},
        {"AWS_ACCESS_KEY_ID": "leaked", "AWS_SECRET_ACCESS_KEY": "leaked"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
        {"AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "eu-north-1"},
        {"AWS_SKIP_SIGNATURE": "true", "AWS_UNSIGNED_PAYLOAD": "true"},
        {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true", "AWS_S3_EXPRESS": "true"},
        {"AWS_BUCKET": "other", "AWS_TOKEN": "leaked", "AWS_CHECKSUM_ALGORITHM": "CRC64NVME"},
        {"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms", "AWS_SSE_KMS_KEY_ID": "leaked"},
        {"AWS_CONDITIONAL_PUT": "disabled", "AWS_REQUEST_PAYER": "true"},
        {"AWS_PROXY_URL": "http://127.0.0.1:1"},
        {"AWS_DEFAULT_CONTENT_TYPE": "leaked/leaked"},
    ],
    ids=lambda leak: next(iter(leak)),
)
def test_the_environment_does_not_leak_into_explicit_options(
    rclone_s3: Any, fault_proxy: Any, monkeypatch: pytest.MonkeyPatch, leak: dict[str, str]
) -> None:
    for name in ("NO_PROXY", "no_proxy"):  # would hide that a proxy is used
        monkeypatch.delenv(name, raising=False)
    for name, value in leak.items():
        monkeypatch.setenv(name, value)
    bucket = rclone_s3.make_bucket()
    seen: list[str] = []
    proxy = fault_proxy(rclone_s3.endpoint)

    def look(_method: str, target: str, headers: Any) -> bool:
        seen.append(target)
        seen.extend(f"{name}: {headers[name]}" for name in headers)
        return False

    proxy.plan(faults.refuse(), match=look, times=None)
    use(open_host(f"s3://{bucket}", {**explicit(rclone_s3), "endpoint_url": proxy.endpoint}))
    text = "\n".join(seen).lower()
    assert f"/{bucket}/" in text
    for unwanted in ("leaked", "x-amz-security-token", "kms", "unsigned-payload", "request-payer"):
        assert unwanted not in text


def test_boto3_finds_the_environment(rclone_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = rclone_s3.make_bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rclone_s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rclone_s3.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", rclone_s3.endpoint)
    host = open_host(f"s3://{bucket}", {})
    use(host)
    assert host.location("k") == f"s3+{rclone_s3.endpoint}/{bucket}/k"


def test_boto3_finds_a_profile(
    rclone_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = rclone_s3.make_bucket()
    (tmp_path / "config").write_text(
        f"[profile store]\nregion = eu-west-3\nendpoint_url = {rclone_s3.endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[store]\naws_access_key_id = {rclone_s3.access_key}\n"
        f"aws_secret_access_key = {rclone_s3.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    host = open_host(f"s3://{bucket}", {"profile": "store"})
    use(host)
    assert host.location("k") == f"s3+{rclone_s3.endpoint}/{bucket}/k"


def test_temporary_credentials_are_renewed_when_they_expire(
    rclone_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = rclone_s3.make_bucket()
    calls = tmp_path / "calls"
    answer = {
        "Version": 1,
        "AccessKeyId": rclone_s3.access_key,
        "SecretAccessKey": rclone_s3.secret_key,
        # botocore renews what ends within 15 minutes, obstore within 5.
        "Expiration": (datetime.now(UTC) + timedelta(seconds=90)).isoformat(),
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    script = tmp_path / "login.sh"
    script.write_text(f"#!/bin/sh\necho x >> {calls}\ncat {tmp_path / 'answer.json'}\n")
    script.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[profile short]\ncredential_process = {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    options = {"endpoint_url": rclone_s3.endpoint, "profile": "short"}
    host = open_host(f"s3://{bucket}", options)
    use(host)
    first = len(calls.read_text())
    location = host.location("a/b")
    time.sleep(0.5)  # obstore asks for a credential that ends soon at most every 0.1 s
    b"".join(host.get(location))
    assert len(calls.read_text()) > first
    answer["Expiration"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    b"".join(host.get(location))
    settled = len(calls.read_text())
    for _ in range(3):
        b"".join(host.get(location))
    assert len(calls.read_text()) == settled


def test_credentials_that_cannot_be_renewed_are_denied_without_their_output(
    rclone_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "login.sh"
    script.write_text("#!/bin/sh\necho hidden >&2\nexit 1\n")
    script.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[profile short]\ncredential_process = {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    options = {"endpoint_url": rclone_s3.endpoint, "profile": "short"}
    host = open_host("s3://bucket", options)
    for call in (host.check, lambda: list(host.get(f"s3+{rclone_s3.endpoint}/bucket/k"))):
        with pytest.raises(AccessDenied) as caught:
            call()
        assert "hidden" not in str(caught.value)


def test_without_credentials_the_message_says_where_they_may_be(rclone_s3: Any) -> None:
    bucket = rclone_s3.make_bucket()
    host = open_host(f"s3://{bucket}", {"endpoint_url": rclone_s3.endpoint})
    location = host.location("k")
    for call in (
        host.check,
        lambda: host.stat(location),
        lambda: list(host.get(location)),
        lambda: host.put("k", BytesSource(b"x"), sha256=hashlib.sha256(b"x").hexdigest()),
    ):
        with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
            call()


def test_a_refusal_names_the_profile(
    rclone_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = rclone_s3.make_bucket()
    (tmp_path / "credentials").write_text(
        "[mine]\naws_access_key_id = AKWRONG\naws_secret_access_key = SKWRONG\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    host = open_host(f"s3://{bucket}", {"endpoint_url": rclone_s3.endpoint, "profile": "mine"})
    with pytest.raises(AccessDenied, match=r"shared-credentials-file.*profile mine") as caught:
        host.check()
    assert "SKWRONG" not in str(caught.value)


def test_no_secret_shows_in_the_host_itself(rclone_s3: Any) -> None:
    host = open_host(f"s3://{rclone_s3.make_bucket()}", explicit(rclone_s3), name="store")
    use(host)
    assert repr(host) == "<S3Host store>"
    assert rclone_s3.secret_key not in repr(vars(host))


def test_the_interpreter_ends_cleanly_after_use_in_threads(rclone_s3: Any) -> None:
    bucket = rclone_s3.make_bucket()
    code = (
        "import sys, json, hashlib\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from cloudmanager.hosts import open_host\n"
        "from cloudmanager.source import BytesSource\n"
        "url, options = json.loads(sys.argv[1])\n"
        "host = open_host(url, options)\n"
        "digest = hashlib.sha256(b'x').hexdigest()\n"
        "def put(n): return host.put(f'a/{n}', BytesSource(b'x'), sha256=digest).location\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(len(list(pool.map(put, range(50)))))\n"
    )
    told = json.dumps([f"s3://{bucket}", explicit(rclone_s3)])
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, told], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "50", "")
