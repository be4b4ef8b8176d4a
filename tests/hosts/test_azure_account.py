"""URLs, options and credentials of the Azure host. No server needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmanager.errors import ConfigurationError, HostError
from cloudmanager.hosts import open_host
from cloudmanager.hosts.azure import AzureHost, open_azure
from cloudmanager.hosts.azure_account import AzureOptions, resolve
from cloudmanager.hosts.azure_blocks import MOST_BLOCKS, block_size_for

KEY = "c2VjcmV0LWtleQ=="
SECRETS = {
    "account_key": KEY,
    "sas_token": "sv=1&sig=hush",
    "connection_string": f"AccountName=photos;AccountKey={KEY}",
}


@pytest.fixture(autouse=True)
def _no_credentials_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECTION_STRING", "ACCOUNT", "KEY", "ACCESS_KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


def made(url: str, **options: object) -> AzureHost:
    return open_azure("box", url, options)


def test_the_short_url_gets_its_account_from_the_options() -> None:
    host = made("azure://pictures/2026", account="photos", account_key=KEY)
    assert host.location("a") == "azure+https://photos.blob.core.windows.net/pictures/2026/a"


def test_the_full_url_names_its_account_itself() -> None:
    host = made("azure+https://Photos.blob.core.windows.net:443/pictures/", account_key=KEY)
    assert host.location("a") == "azure+https://photos.blob.core.windows.net/pictures/a"
    assert host.account.name == "photos"


@pytest.mark.parametrize(
    ("url", "account", "location"),
    [
        (
            "azure+http://127.0.0.1:10000/devstoreaccount1/box/p",
            "devstoreaccount1",
            "azure+http://127.0.0.1:10000/devstoreaccount1/box/p/k",
        ),
        (
            "azure+http://azurite:10000/devstoreaccount1/box",
            "devstoreaccount1",
            "azure+http://azurite:10000/devstoreaccount1/box/k",
        ),
        (
            "azure+http://[::1]:10000/devstoreaccount1/box",
            "devstoreaccount1",
            "azure+http://[::1]:10000/devstoreaccount1/box/k",
        ),
        (
            "azure+https://photos.blob.core.chinacloudapi.cn/box",
            "photos",
            "azure+https://photos.blob.core.chinacloudapi.cn/box/k",
        ),
    ],
)
def test_the_account_is_in_the_path_or_in_the_name_of_the_server(
    url: str, account: str, location: str
) -> None:
    host = made(url, account_key=KEY)
    assert host.account.name == account
    assert host.location("k") == location
    assert host.owns(location)


def test_a_domain_of_ones_own_needs_the_account_as_an_option() -> None:
    with pytest.raises(ConfigurationError, match="option account"):
        made("azure+https://files.example.org/box", account_key=KEY)
    host = made("azure+https://files.example.org/box/p", account="photos", account_key=KEY)
    assert host.location("k") == "azure+https://files.example.org/box/p/k"


def test_the_endpoint_option_says_where_the_short_url_leads() -> None:
    host = made(
        "azure://box/p",
        account_key=KEY,
        endpoint_url="http://127.0.0.1:10000/devstoreaccount1/",
    )
    assert host.location("k") == "azure+http://127.0.0.1:10000/devstoreaccount1/box/p/k"
    assert host.account.name == "devstoreaccount1"


@pytest.mark.parametrize(
    ("text", "location"),
    [
        (
            f"DefaultEndpointsProtocol=https;AccountName=photos;AccountKey={KEY};"
            "EndpointSuffix=core.windows.net",
            "azure+https://photos.blob.core.windows.net/box/k",
        ),
        (
            f"AccountName=dev;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:1/dev;",
            "azure+http://127.0.0.1:1/dev/box/k",
        ),
        (
            "BlobEndpoint=https://photos.blob.core.windows.net;SharedAccessSignature=sv=1&sig=x",
            "azure+https://photos.blob.core.windows.net/box/k",
        ),
        ("UseDevelopmentStorage=true", "azure+http://127.0.0.1:10000/devstoreaccount1/box/k"),
    ],
)
def test_a_connection_string_says_where_and_how(text: str, location: str) -> None:
    assert made("azure://box", connection_string=text).location("k") == location


@pytest.mark.parametrize("key", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY"])
def test_the_variables_of_the_azure_command_line_are_used(key: str) -> None:
    variables = {"AZURE_STORAGE_ACCOUNT": "photos", key: KEY}
    container, account = resolve("box", "azure://pictures", AzureOptions(), variables)
    assert container.endpoint == "https://photos.blob.core.windows.net"
    assert (account.name, account.key, account.sas_token) == ("photos", KEY, None)


def test_a_sas_token_may_start_with_its_question_mark() -> None:
    variables = {"AZURE_STORAGE_ACCOUNT": "photos", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"}
    _, account = resolve("box", "azure://pictures", AzureOptions(), variables)
    assert (account.key, account.sas_token) == (None, "sv=1&sig=x")


def test_the_real_environment_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", SECRETS["connection_string"])
    host = made("azure://pictures")
    assert host.account.key == KEY
    assert host.account.name == "photos"


def test_options_win_over_the_environment() -> None:
    variables = {
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=b3RoZXI=",
        "AZURE_STORAGE_SAS_TOKEN": "sig=other",
    }
    options = AzureOptions(account="photos", account_key=KEY)
    container, account = resolve("box", "azure://pictures", options, variables)
    assert (account.name, account.key, account.sas_token) == ("photos", KEY, None)
    assert "photos" in container.endpoint


def test_a_credential_for_another_account_is_never_used() -> None:
    url = "azure+https://photos.blob.core.windows.net/pictures"
    variables = {"AZURE_STORAGE_ACCOUNT": "other", "AZURE_STORAGE_SAS_TOKEN": "sig=other"}
    with pytest.raises(ConfigurationError, match="no credentials"):
        resolve("box", url, AzureOptions(), variables)
    options = AzureOptions(connection_string="AccountName=other;AccountKey=b3RoZXI=")
    with pytest.raises(ConfigurationError, match=r"'photos'.*'other'"):
        resolve("box", url, options, {})


def test_without_credentials_the_error_names_the_variables() -> None:
    with pytest.raises(ConfigurationError) as caught:
        made("azure+https://photos.blob.core.windows.net/pictures")
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"):
        assert name in str(caught.value)


def test_without_an_account_the_error_says_how_to_name_one() -> None:
    with pytest.raises(ConfigurationError, match="AZURE_STORAGE_ACCOUNT"):
        made("azure://pictures")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("azure://", {}),
        ("azure://Upper", {}),
        ("azure://ab", {}),
        ("azure://a--b", {}),
        ("azure://" + "a" * 64, {}),
        ("azure+http://127.0.0.1:10000/devstoreaccount1", {}),
        ("azure+https://photos.blob.core.windows.net", {}),
        ("azure+https://photos.blob.core.windows.net:port/pictures", {}),
        ("azure+https://photos.blob.core.windows.net/pictures?sig=hush", {}),
        ("azure+https://user@photos.blob.core.windows.net/pictures", {}),
        ("azure://pictures", {"account": "photos", "tier": "Warm"}),
        ("azure://pictures", {"account": "photos", "block_size": "1KiB"}),
        ("azure://pictures", {"account": "photos", "block_size": "many"}),
        ("azure://pictures", {"account": "photos", "concurrency": 0}),
        ("azure://pictures", {"account": "photos", "ca_bundle": "/does/not/exist"}),
        ("azure://pictures", {"account": "photos", "unknown": 1}),
        ("azure://pictures", {"account": ""}),
        ("azure://pictures", {"account": "photos", "connection_string": "nothing"}),
    ],
)
def test_a_url_or_option_that_does_not_fit_is_refused(url: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(url, **{"account_key": KEY, **options})
    assert "hush" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"acount_key.*takes:.*account_key, aliases"):
        made("azure://pictures", acount_key=KEY)


def test_secrets_do_not_show() -> None:
    options = AzureOptions.parse("box", SECRETS)
    _, account = resolve("box", "azure://pictures", options, {})
    for shown in (repr(options), repr(account), repr(made("azure://pictures", **SECRETS))):
        assert KEY not in shown
        assert "hush" not in shown


@pytest.mark.parametrize(
    ("location", "owned"),
    [
        ("azure+https://photos.blob.core.windows.net/pictures/2026/a", True),
        ("azure+https://PHOTOS.blob.core.windows.net:443/pictures/2026/a", True),
        ("azure+https://photos.blob.core.windows.net/pictures/%32026/a%20b", True),
        ("azure://pictures/2026/a", True),
        ("azure+https://photos.blob.core.windows.net/pictures/20267/a", False),
        ("azure+https://photos.blob.core.windows.net/pictures/2026", False),
        ("azure+https://photos.blob.core.windows.net/pictures/2026/", False),
        ("azure+https://photos.blob.core.windows.net/pictures/2025/a", False),
        ("azure+https://photos.blob.core.windows.net/other/2026/a", False),
        ("azure+https://other.blob.core.windows.net/pictures/2026/a", False),
        ("azure+http://photos.blob.core.windows.net/pictures/2026/a", False),
        ("azure+https://photos.blob.core.windows.net/pictures/2026/a?sig=x", False),
        ("azure+https://photos.blob.core.windows.net/pictures/2026/a#x", False),
        ("azure+https://u@photos.blob.core.windows.net/pictures/2026/a", False),
        ("azure+https://photos.blob.core.windows.net:port/pictures/2026/a", False),
        ("azure://other/2026/a", False),
        ("azure://pictures/2025/a", False),
        ("https://photos.blob.core.windows.net/pictures/2026/a", False),
        ("s3://pictures/2026/a", False),
        ("azure+https://old.example.org/archive/a", True),
        ("azure+https://old.example.org/archived/a", False),
        ("", False),
    ],
)
def test_it_owns_what_lies_below_its_prefix_and_its_aliases(location: str, owned: bool) -> None:
    host = made(
        "azure://pictures/2026",
        account="photos",
        account_key=KEY,
        aliases=["azure+https://old.example.org/archive"],
    )
    assert host.owns(location) is owned
    if not owned:
        with pytest.raises(HostError, match="not on this host"):
            host.stat(location)


def test_the_short_form_is_not_owned_by_a_host_that_was_named_in_full() -> None:
    host = made("azure+https://photos.blob.core.windows.net/pictures", account_key=KEY)
    assert not host.owns("azure://pictures/a")


@pytest.mark.parametrize("key", ["", ".", "..", "a/../b", "a/./b", "a\\b", "x\udcff", "k" * 1025])
def test_a_key_that_azure_would_change_or_refuse_is_refused_before_any_io(key: str) -> None:
    host = made("azure://pictures", account="photos", account_key=KEY)
    from cloudmanager.source import BytesSource

    with pytest.raises(HostError, match="cannot be the name"):
        host.put(key, BytesSource(b""), sha256="0" * 64)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_every_key_survives_its_location(key: str) -> None:
    host = made("azure://pictures/a b", account="photos", account_key=KEY)
    location = host.location(key)
    assert location.isascii()
    assert location.isprintable()
    assert host._key(location) == key


@given(st.integers(1, 190 * 1024**4), st.sampled_from([1 << 20, 16 << 20, 100 << 20]))
def test_blocks_are_never_more_than_the_service_allows(size: int, smallest: int) -> None:
    each = block_size_for(size, smallest)
    assert each >= smallest
    assert -(-size // each) <= MOST_BLOCKS
    assert each == smallest or each % (1 << 20) == 0
    assert each <= 4000 << 20


def test_the_registry_makes_azure_hosts() -> None:
    host = open_host("azure+https://photos.blob.core.windows.net/pictures", {"account_key": KEY})
    assert isinstance(host, AzureHost)
    assert host.name == "azure+https://photos.blob.core.windows.net/pictures"
