"""Names and types under which objects download. Used by every object host."""

from __future__ import annotations

import email.message
import email.policy
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmanager.hosts.disposition import content_disposition, content_type, filename_of

NAMES = st.text(st.characters(), max_size=80) | st.binary(max_size=255).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)


@given(NAMES)
def test_the_header_is_printable_ascii_on_one_line(name: str) -> None:
    header = content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.startswith("attachment")
    assert len(header) < 4200


@given(st.binary(min_size=1, max_size=1024).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_every_name_of_a_file_comes_back(name: str) -> None:
    assert filename_of(content_disposition(name)) == name


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60))
def test_another_parser_reads_the_same_name(name: str) -> None:
    message = email.message.EmailMessage(policy=email.policy.HTTP)
    message["Content-Disposition"] = content_disposition(name)
    header = message["Content-Disposition"]
    if "filename*=" in content_disposition(name):
        encoded = content_disposition(name).partition("filename*=UTF-8''")[2]
        assert urllib.parse.unquote(encoded, errors="strict") == name
    else:
        assert header.params["filename"] == name


@given(NAMES)
def test_the_readable_form_holds_nothing_that_could_end_it_or_leave_the_folder(name: str) -> None:
    header = content_disposition(name)
    if header != "attachment":
        quoted = header.removeprefix('attachment; filename="').partition('"')[0]
        assert not set(quoted) & set("\\/%\r\n\0")
        rest = header.removeprefix(f'attachment; filename="{quoted}"')
        assert rest == "" or rest.startswith("; filename*=UTF-8''")


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("a b;c.txt", 'attachment; filename="a b;c.txt"'),
        ("näme.txt", "attachment; filename=\"name.txt\"; filename*=UTF-8''n%C3%A4me.txt"),
        ('say "hi"', "attachment; filename=\"say _hi_\"; filename*=UTF-8''say%20%22hi%22"),
        ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
        ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
        ("x\udcff", "attachment; filename=\"x_\"; filename*=UTF-8''x%FF"),
        ("日本", "attachment; filename=\"__\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC"),
        ("", "attachment"),
    ],
)
def test_names_are_written_like_this(name: str, header: str) -> None:
    assert content_disposition(name) == header


def test_a_name_longer_than_any_file_system_allows_is_cut_before_its_extension() -> None:
    name = filename_of(content_disposition("ü" * 3000 + ".tar"))
    assert name is not None
    assert name == "ü" * 510 + ".tar"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (None, None),
        ("", None),
        ("attachment", None),
        ("inline", None),
        ("attachment; filename=plain.txt", "plain.txt"),
        ('attachment;filename="a \\"b\\".txt"', 'a "b".txt'),
        ("attachment; filename*=iso-8859-1'en'%A3%20rates", "£ rates"),
        ("attachment; filename=\"x\"; FILENAME*=utf-8''%e2%82%ac", "€"),
        ("attachment; filename*=unknown''x; filename=y", "y"),
    ],
)
def test_headers_of_others_are_read(header: str | None, name: str | None) -> None:
    assert filename_of(header) == name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text/plain"),
        ("A.JPG", "image/jpeg"),
        ("clip.mp4", "video/mp4"),
        ("a.tar.gz", "application/gzip"),
        ("a.tgz", "application/gzip"),
        ("a.tar.xz", "application/x-xz"),
        ("a.bz2", "application/x-bzip2"),
        ("noextension", "application/octet-stream"),
        (".bashrc", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("data:,x", "application/octet-stream"),
        ("http://x/a.pdf", "application/pdf"),
        ("a.pdf\n", "application/octet-stream"),
        ("x\udcff.png", "image/png"),
        ("", "application/octet-stream"),
    ],
)
def test_the_extension_says_the_type(name: str, kind: str) -> None:
    assert content_type(name) == kind


@given(NAMES)
def test_every_name_has_a_type(name: str) -> None:
    kind = content_type(name)
    assert kind.isascii()
    assert kind.count("/") == 1
