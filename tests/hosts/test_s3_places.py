"""S3 URLs, what a host owns, and its options. Nothing here opens a connection."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmanager.errors import ConfigurationError, HostError
from cloudmanager.hosts import open_host
from cloudmanager.hosts.s3_options import MIB, MOST_PARTS, S3Options
from cloudmanager.hosts.s3_place import Place, normal_endpoint, parse_url
from cloudmanager.source import BytesSource

KEYS = {"access_key_id": "AKEXAMPLE", "secret_access_key": "SKEXAMPLE", "region": "eu-west-1"}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    return


def test_a_location_on_amazon_names_the_bucket_alone() -> None:
    host = open_host("s3://films/pool", KEYS)
    assert host.location("6f/6f7b") == "s3://films/pool/6f/6f7b"


def test_a_location_elsewhere_names_its_endpoint() -> None:
    host = open_host("s3://films/pool", {**KEYS, "endpoint_url": "http://Minio.Example:9000/"})
    assert host.location("6f/6f7b") == "s3+http://minio.example:9000/films/pool/6f/6f7b"


def test_the_endpoint_of_the_environment_is_part_of_the_location(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.provider.example")
    host = open_host("s3://films", KEYS)
    assert host.location("k") == "s3+https://s3.provider.example/films/k"


def test_buckets_of_one_name_at_two_providers_are_not_mixed_up() -> None:
    amazon = open_host("s3://films", KEYS)
    other = open_host("s3://films", {**KEYS, "endpoint_url": "https://s3.provider.example"})
    third = open_host("s3+https://objects.example/films", KEYS)
    hosts = [amazon, other, third]
    for host in hosts:
        assert [each.owns(host.location("k")) for each in hosts] == [each is host for each in hosts]


@pytest.mark.parametrize(
    "spelling",
    [
        "s3://films/pool/a/b",
        "S3://films/pool/a/b",
        "s3://films/pool/a%2Fb",
        "s3+https://s3.amazonaws.com/films/pool/a/b",
        "s3+https://s3.eu-west-1.amazonaws.com/films/pool/a/b",
        "s3+https://s3.dualstack.eu-west-1.amazonaws.com:443/films/pool/a/b",
        "s3+https://films.s3.eu-west-1.amazonaws.com/pool/a/b",
    ],
)
def test_a_host_on_amazon_owns_every_spelling_of_its_place(spelling: str) -> None:
    assert open_host("s3://films/pool", KEYS).owns(spelling)


@pytest.mark.parametrize(
    "location",
    [
        "s3://films/pool",
        "s3://films/pool/",
        "s3://films/poolside/a",
        "s3://films/a",
        "s3://films2/pool/a",
        "s3://Films/pool/a",
        "s3+https://films/pool/a",
        "s3+https://s3.provider.example/films/pool/a",
        "s3+https://s3.cn-north-1.amazonaws.com.cn/films/pool/a",
        "azure://films/pool/a",
        "/films/pool/a",
        "s3://key:secret@films/pool/a",
        "s3://films/pool/a?versionId=1",
        "s3://films/pool/%ff",
        "",
    ],
)
def test_a_host_owns_nothing_outside_its_prefix(location: str) -> None:
    assert not open_host("s3://films/pool", KEYS).owns(location)


def test_the_older_url_of_a_place_can_be_kept_as_an_alias() -> None:
    options = {**KEYS, "aliases": ["s3+http://old.example:9000/films/pool", "s3://films/pool"]}
    host = open_host("s3+https://new.example/films/pool", options)
    assert host.owns("s3+http://old.example:9000/films/pool/a")
    assert host.owns("s3://films/pool/a")
    assert not host.owns("s3+http://old.example:9000/films/a")
    assert host.location("a") == "s3+https://new.example/films/pool/a"


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40))
def test_every_key_survives_its_location(key: str) -> None:
    for place in (
        Place(None, "films", "pool/"),
        Place("http://127.0.0.1:9000", "films"),
        Place("https://[::1]", "films", "a b/ü/"),
    ):
        location = place.location(key)
        assert location.isascii()
        assert place.key(location) == key


@pytest.mark.parametrize(
    ("given_url", "normal"),
    [
        ("https://Host.Example", "https://host.example"),
        ("https://host.example:443/", "https://host.example"),
        ("http://host.example:80", "http://host.example"),
        ("http://host.example:8080", "http://host.example:8080"),
        ("http://[::1]:9000", "http://[::1]:9000"),
    ],
)
def test_an_endpoint_has_one_spelling(given_url: str, normal: str) -> None:
    assert normal_endpoint(given_url) == normal


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://AKEXAMPLE:hidden@films",
        "s3+https://host.example",
        "s3+https://host.example/",
        "s3+ftp://host.example/films",
        "s3://films?region=eu",
        "s3://films/#x",
    ],
)
def test_a_wrong_url_is_a_configuration_error_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_host(url, KEYS)
    assert "hidden" not in str(caught.value)


def test_percent_signs_in_the_prefix_are_read_as_in_any_url() -> None:
    assert parse_url("s3://films/a%20b/c") == (None, "films", "a b/c")


def test_an_unknown_option_names_the_known_ones_and_shows_no_value() -> None:
    with pytest.raises(ConfigurationError, match=r"secret_acess_key.*storage_class") as caught:
        open_host("s3://films", {"secret_acess_key": "hidden"})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"access_key_id": "a"}, "secret_access_key"),
        ({"session_token": "a"}, "session_token"),
        ({"sse": "rot13"}, "sse"),
        ({"sse": "AES256", "sse_kms_key_id": "k"}, "sse_kms_key_id"),
        ({"addressing_style": "sideways"}, "addressing_style"),
        ({"checksum": "md4"}, "checksum"),
        ({"part_size": "1MiB"}, "part_size"),
        ({"part_size": "large"}, "part_size"),
        ({"concurrency": 0}, "concurrency"),
        ({"verify_tls": "maybe"}, "verify_tls"),
        ({"ca_bundle": "/nonexistent/ca.pem"}, "ca_bundle"),
        ({"endpoint_url": "host.example"}, "endpoint_url"),
        ({"endpoint_url": "https://host.example/s3"}, "endpoint_url"),
        ({"region": ""}, "region"),
        ({"aliases": "ftp://x"}, "alias"),
    ],
)
def test_an_option_that_does_not_fit_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        open_host("s3://films", options)


def test_the_url_and_the_option_cannot_name_two_endpoints() -> None:
    with pytest.raises(ConfigurationError, match="endpoint"):
        open_host("s3+https://a.example/films", {"endpoint_url": "https://b.example"})


def test_secrets_do_not_show_in_the_options() -> None:
    options = S3Options.parse("h", {**KEYS, "session_token": "TOKENEXAMPLE"})
    for secret in ("AKEXAMPLE", "SKEXAMPLE", "TOKENEXAMPLE"):
        assert secret not in repr(options)


def test_an_unknown_profile_is_a_configuration_error() -> None:
    host = open_host("s3://films", {"profile": "nobody"})
    with pytest.raises(ConfigurationError, match="profile"):
        host.location("k")


@given(st.integers(1, 5 * 1024 * 1024 * MIB))
def test_an_object_of_any_size_fits_into_ten_thousand_parts(size: int) -> None:
    part_size = S3Options().size_of_parts(size)
    assert part_size >= 16 * MIB
    assert part_size % MIB == 0
    assert -(-size // part_size) <= MOST_PARTS


@pytest.mark.parametrize("key", ["", "x" * 1020, "a\udcff"])
def test_a_key_that_s3_cannot_hold_is_refused_before_any_io(key: str) -> None:
    host = open_host("s3+http://127.0.0.1:1/films/pool", KEYS)
    with pytest.raises(HostError, match="key") as caught:
        host.put(key, BytesSource(b"x"), sha256="0" * 64)
    assert not caught.value.retryable


def test_a_location_of_another_host_is_refused_before_any_io() -> None:
    host = open_host("s3+http://127.0.0.1:1/films/pool", KEYS)
    for call in (
        lambda: host.stat("s3://films/pool/a"),
        lambda: list(host.get("s3://films/pool/a")),
        lambda: host.delete(["s3://films/pool/a"]),
    ):
        with pytest.raises(HostError, match="does not lie below"):
            call()


def test_making_a_host_loads_no_sdk() -> None:
    code = (
        "import sys; from cloudmanager.hosts import open_host\n"
        "host = open_host('s3+https://host.example/films', {})\n"
        "assert host.owns('s3+https://host.example/films/a')\n"
        "print([m for m in ('boto3', 'botocore', 'obstore', 'urllib3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
