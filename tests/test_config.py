"""Settings: their order, their errors, their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmanager import config
from cloudmanager.errors import ConfigurationError, UnknownHost
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.hosts.http import HttpHost

TOML = """
capacity = "1GiB"
redundancy = 1
[hosts.b]
url = "/srv/b"
[hosts.a]
url = "s3://bucket/prefix"
secret_access_key = "hunter2"
access_key_id = "AKIA"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONFIG", "DATABASE", "STORAGE", "CAPACITY", "REDUNDANCY", "HOSTS", "JOBS"):
        monkeypatch.delenv(f"CLOUDMANAGER_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "config.toml"
    path.write_text(TOML)
    return path


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.load().capacity == config.DEFAULT_CAPACITY
    assert config.load(config=file).capacity == 2**30
    monkeypatch.setenv("CLOUDMANAGER_CAPACITY", "2GiB")
    assert config.load(config=file).capacity == 2 * 2**30
    settings = config.load(config=file, capacity="3GiB")
    assert settings.capacity == 3 * 2**30
    assert settings.sources["capacity"] == "flag"


def test_hosts_keep_the_order_of_the_file(file: Path) -> None:
    assert [host.name for host in config.load(config=file).hosts] == ["b", "a"]


def test_hosts_are_chosen_by_name_or_url(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config.load(config=file, hosts=["a", "/mnt/x"]).hosts
    assert [(host.name, host.url) for host in chosen] == [
        ("a", "s3://bucket/prefix"),
        ("/mnt/x", "/mnt/x"),
    ]
    monkeypatch.setenv("CLOUDMANAGER_HOSTS", "b /mnt/y")
    assert [host.name for host in config.load(config=file).hosts] == ["b", "/mnt/y"]


@pytest.mark.usefixtures("file")
def test_with_nothing_configured_there_is_one_local_folder(tmp_path: Path) -> None:
    settings = config.load()
    (host,) = settings.hosts
    opened = host.open()
    assert isinstance(opened, FolderHost)
    assert opened.root == tmp_path / "data" / "cloudmanager" / "files"
    assert settings.database == str(tmp_path / "data" / "cloudmanager" / "catalog.sqlite3")


def test_an_unknown_name_is_no_local_folder(file: Path) -> None:
    with pytest.raises(UnknownHost, match="neither a configured host"):
        config.load(config=file, hosts=["archvie"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense = 1", "unknown setting nonsense"),
        ("capacity = ", "TOML"),
        ('capacity = "lots"', "capacity"),
        ("redundancy = 0", "at least 1"),
        ("[hosts.x]\nregion = 'eu'", "needs a url"),
        ("hosts = 3", "hosts must be tables"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        config.load(config=file)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration file"):
        config.load(config=tmp_path / "nothing.toml")


def test_secrets_come_from_the_environment_a_file_or_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "from-env")
    (tmp_path / "secret").write_text("from-file\n")
    resolved = [
        config._resolve("h", "k", source)
        for source in (
            {"env": "MY_SECRET"},
            {"file": str(tmp_path / "secret")},
            {"command": ["echo", "from-command"]},
        )
    ]
    assert resolved == ["from-env", "from-file", "from-command"]


@pytest.mark.parametrize(
    "source",
    [
        {"env": "NOT_SET_ANYWHERE"},
        {"file": "/nothing/here"},
        {"command": ["false"]},
        {"command": "x y"},
    ],
)
def test_a_secret_that_cannot_be_had_is_an_error_without_its_value(source: object) -> None:
    with pytest.raises(ConfigurationError, match="host h: k"):
        config._resolve("h", "k", source)


def test_what_is_shown_has_no_secret(file: Path) -> None:
    (host,) = config.load(config=file, hosts=["a"]).hosts
    shown = config.redact(host.options)
    assert shown == {"secret_access_key": "***", "access_key_id": "AKIA"}
    assert "hunter2" not in repr(host)
    assert config.redact({"account_key": {"env": "X"}}) == {"account_key": {"env": "X"}}
    assert config.redact_url("postgresql://u:pw@h/db?x=y") == "postgresql://u:***@h/db?x=***"
    assert config.redact_url("postgresql://u:p@ss@h/db") == "postgresql://u:***@h/db"


def test_one_host_cannot_be_named_twice(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        config.load(config=file, hosts=["a", "a"])


@pytest.mark.parametrize(
    ("given", "rate"), [(None, None), ("0", None), ("10M", 10 * 1024**2), (1500, 1500)]
)
def test_a_bandwidth_limit_is_bytes_a_second_and_nothing_by_default(
    given: str | int | None, rate: int | None
) -> None:
    assert config.load(bwlimit=given).bwlimit == rate


def test_a_bandwidth_limit_that_is_none_says_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOUDMANAGER_BWLIMIT", "fast")
    with pytest.raises(ConfigurationError, match="CLOUDMANAGER_BWLIMIT"):
        config.load()


def test_a_secret_inside_a_table_of_an_option_is_fetched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_TOKEN", "Bearer hunter2")
    path = tmp_path / "c.toml"
    path.write_text(
        '[hosts.mirror]\nurl = "https://mirror.example.org/files"\n'
        'headers = { Authorization = { env = "MIRROR_TOKEN" }, Accept = "*/*" }\n'
    )
    (setting,) = config.load(config=path).hosts
    host = setting.open()
    assert isinstance(host, HttpHost)
    assert host.options.headers == {"Authorization": "Bearer hunter2", "Accept": "*/*"}
    monkeypatch.delenv("MIRROR_TOKEN")
    with pytest.raises(ConfigurationError, match=r"headers\.Authorization.*MIRROR_TOKEN"):
        setting.open()
