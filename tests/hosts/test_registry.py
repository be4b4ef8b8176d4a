"""From URLs to hosts."""

from __future__ import annotations

import pytest

from cloudmanager.errors import UnknownHost
from cloudmanager.hosts import default_name, open_host, schemes
from cloudmanager.hosts.folder import FolderHost


@pytest.mark.parametrize("url", ["/srv/x", "./x", "../x", "~/x", "file:///srv/x"])
def test_paths_and_file_urls_are_folders(url: str) -> None:
    assert isinstance(open_host(url), FolderHost)


@pytest.mark.parametrize("url", ["x", "x/y", "", "foo://bar", "C:\\x", "s4://bucket"])
def test_an_unknown_scheme_never_means_a_local_folder(url: str) -> None:
    with pytest.raises(UnknownHost):
        open_host(url)


def test_every_kind_that_is_built_in_is_known() -> None:
    assert {"file", "s3", "s3+https", "azure", "azure+https", "http", "https", "command"} <= set(
        schemes()
    )


def test_a_name_taken_from_a_url_holds_no_credentials() -> None:
    assert default_name("s3+https://user:pw@host/bucket/?token=1#f") == "s3+https://host/bucket"


def test_a_password_with_an_at_sign_is_hidden_whole() -> None:
    assert default_name("webdav+https://user:p@ss@host/x") == "webdav+https://host/x"
