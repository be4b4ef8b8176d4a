"""Sizes, hashes and keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmanager.model import format_bytes, parse_bytes, pool_key, validate_hash


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1048576, 1048576),
        ("0", 0),
        ("512", 512),
        ("10K", 10 * 1024),
        ("20GiB", 20 * 2**30),
        ("20gib", 20 * 2**30),
        ("1.5MiB", 3 * 2**19),
        ("5TB", 5 * 10**12),
        (" 7 M ", 7 * 2**20),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read_as_rclone_and_restic_read_them(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", -1, "1.2.3", "10 apples", "1e9", "0x10", True])
def test_what_is_no_size_raises_value_error(text: int | str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@given(st.integers(0, 2**60))
def test_plain_numbers_are_bytes_exactly(number: int) -> None:
    assert parse_bytes(str(number)) == number


def test_sizes_for_people_have_one_decimal() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.0 GiB",
    ]


def test_a_hash_is_64_hex_digits_in_lower_case() -> None:
    assert validate_hash("AB" * 32) == "ab" * 32


@pytest.mark.parametrize(
    "text", ["", "ab" * 31, "ab" * 33, "g" * 64, "ab" * 32 + "\n", None, b"ab" * 32, 1]
)
def test_a_malformed_hash_raises_value_error(text: object) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        validate_hash(text)


def test_pool_objects_lie_in_folders_by_their_first_two_digits() -> None:
    assert pool_key("6f" + "0" * 62) == "6f/6f" + "0" * 62
