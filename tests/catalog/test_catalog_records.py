"""What goes into the catalog comes out of it, on both databases."""

from __future__ import annotations

import calendar
import math
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudmanager.catalog import Catalog, HostCount
from cloudmanager.catalog.records import file_from_row, file_to_row
from cloudmanager.errors import CatalogError
from cloudmanager.model import Checksum, FileRecord

NAMES = [
    "plain.txt",
    "naïve – 名前.txt",
    "two\nlines\tand a tab",
    "not utf-8 \udcff\udc80.bin",
    "valid ü and not \udcfc",
    "replacement \N{REPLACEMENT CHARACTER} itself",
    "emoji \N{GRINNING FACE}",
    "nul \0 inside",
    "",
]


def test_a_file_is_known_after_it_was_recorded_and_not_before(catalog, file, sha):
    assert not catalog.exists(sha(1))
    assert catalog.get(sha(1)) is None
    catalog.record([file(1)], [])
    assert catalog.exists(sha(1)) is True
    assert catalog.exists(sha(2)) is False
    assert catalog.get(sha(1)) == file(1)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_name_comes_back_as_it_was(catalog, file, name):
    record = file(1, name=name)
    catalog.record([record], [])
    assert catalog.get(record.hash) == record
    assert list(catalog.files()) == [record]


@given(st.binary(max_size=60))
def test_any_bytes_survive_as_a_file_name(raw):
    record = FileRecord("0" * 64, raw.decode("utf-8", "surrogateescape"), 0, 0.0)
    row = file_to_row(record)
    row["name"].encode("utf-8")
    assert "\0" not in row["name"]
    assert file_from_row(tuple(row.values())) == record


def test_a_name_that_no_file_system_gives_is_refused(catalog, file):
    with pytest.raises(ValueError, match="not a file name"):
        catalog.record([file(1, name="\ud800")], [])
    assert catalog.totals() == (0, 0)


def test_sizes_and_counts_have_64_bits_and_times_keep_every_digit(catalog, file, copy):
    record = file(1, size=2**62, created=math.nextafter(1.7e9, 2e9))
    upload = copy(1, attempts=3, stored_at=0.1 + 0.2, verified_at=math.nextafter(1.7e9, 0))
    catalog.record([record], [upload], incoming=2**61, outgoing=2**61 + 1)
    catalog.record([], [], incoming=2**61)
    assert catalog.get(record.hash) == record
    assert catalog.uploads(record.hash) == [upload]
    assert catalog.meter_total() == (2**62, 2**61 + 1)
    assert catalog.totals() == (1, 2**62)


def test_a_copy_comes_back_with_all_its_fields(catalog, file, copy):
    full = copy(
        1,
        "host/ü",
        "s3://bücket/ключ",
        status="failed",
        external=True,
        error="it said: \N{SNOWMAN}",
        attempts=7,
        stored_at=1.25,
        checksum=Checksum("sha256-composite", "ab12-3", 8 << 20),
        etag='"e"',
        verified_at=2.5,
        verdict="wrong",
    )
    bare = copy(1, "b", status="queued")
    catalog.record([file(1)], [full, bare])
    assert catalog.uploads(full.hash) == [bare, full]


def test_a_message_that_cannot_be_stored_is_kept_readable(catalog, file, copy, sha):
    catalog.record([file(1)], [copy(1, status="queued", error="a\0b \udcff")])
    assert [upload.error for upload in catalog.uploads(sha(1))] == ["a\\0b \\udcff"]


@pytest.mark.parametrize("location", ["nul\0", "surrogate\udcff"])
def test_a_location_that_cannot_be_stored_exactly_is_refused(catalog, file, copy, sha, location):
    with pytest.raises(ValueError):
        catalog.record([file(1)], [copy(1, "a", location)])
    assert not catalog.exists(sha(1))


def test_a_file_that_is_known_stays_as_it_was(catalog, file, sha):
    catalog.record([file(1, name="first", size=1)], [])
    catalog.record([file(1, name="second", size=2)], [])
    assert catalog.get(sha(1)) == file(1, name="first", size=1)


def test_a_wrong_size_can_be_corrected(catalog, file, sha):
    catalog.record([file(1, size=1), file(2, size=1)], [])
    catalog.correct_size(sha(1), 9)
    assert catalog.totals() == (2, 10)
    with pytest.raises(ValueError):
        catalog.correct_size(sha(1), -1)


def test_recording_a_copy_again_replaces_it(catalog, file, copy, sha):
    catalog.record([file(1)], [copy(1, error="old", attempts=2)])
    catalog.record([], [copy(1, etag="new")])
    assert catalog.uploads(sha(1)) == [copy(1, etag="new")]


def test_the_last_record_of_one_copy_in_a_batch_wins(catalog, file, copy, sha):
    catalog.record([file(1), file(1, name="again")], [copy(1, etag="1"), copy(1, etag="2")])
    assert catalog.uploads(sha(1)) == [copy(1, etag="2")]
    assert catalog.get(sha(1)) == file(1)


@pytest.mark.parametrize("status", ["stored", "failed"])
def test_a_copy_that_arrived_or_failed_settles_what_that_host_owed(
    catalog, file, copy, sha, status
):
    owed_by_a, owed_by_b = copy(1, "a", status="queued"), copy(1, "b", status="queued")
    other = copy(2, "a", status="queued")
    catalog.record([file(1), file(2)], [owed_by_a, owed_by_b, other])
    arrived = copy(1, "a", status=status)
    catalog.record([], [arrived])
    assert catalog.uploads(sha(1)) == [arrived, owed_by_b]
    assert catalog.uploads(sha(2)) == [other]


def test_an_external_copy_settles_nothing(catalog, file, copy, sha):
    owed, external = copy(1, status="queued"), copy(1, external=True)
    catalog.record([file(1)], [owed])
    catalog.record([], [external])
    assert catalog.uploads(sha(1)) == [owed, external]


def test_a_queued_copy_carries_the_error_and_the_attempts_it_is_given(catalog, file, copy, sha):
    catalog.record([file(1)], [copy(1, status="queued")])
    catalog.record([], [copy(1, status="queued", error="503", attempts=4)])
    assert catalog.uploads(sha(1)) == [copy(1, status="queued", error="503", attempts=4)]


def test_a_batch_with_one_bad_record_keeps_nothing_and_adds_nothing_to_the_meter(
    catalog, file, copy, sha
):
    with pytest.raises(CatalogError, match="contradicts"):
        catalog.record([file(1)], [copy(1), copy("unknown file")], outgoing=5)
    assert not catalog.exists(sha(1))
    assert catalog.uploads(sha(1)) == []
    assert catalog.meter_total() == (0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        lambda record: replace(record, hash="0" * 63),
        lambda record: replace(record, hash=record.hash.upper()),
        lambda record: replace(record, hash="g" * 64),
        lambda record: replace(record, size=-1),
    ],
)
def test_a_malformed_hash_or_a_negative_size_does_not_get_in(catalog, file, bad):
    with pytest.raises(CatalogError, match="contradicts"):
        catalog.record([bad(file(1))], [])
    assert catalog.totals() == (0, 0)


def test_an_unknown_status_is_refused(catalog, file, copy):
    with pytest.raises(ValueError, match="'lost'"):
        catalog.record([file(1)], [copy(1, status="lost")])


def test_many_files_and_copies_are_read_at_once_and_unknown_ones_are_missing(
    catalog, file, copy, sha
):
    numbers = range(1203)
    catalog.record([file(n, size=n) for n in numbers], [copy(n) for n in numbers if n % 2])
    wanted = [sha(n) for n in numbers] + [sha("unknown"), sha(0)]
    assert catalog.get_many(wanted) == {sha(n): file(n, size=n) for n in numbers}
    assert catalog.uploads_many(wanted) == {sha(n): [copy(n)] for n in numbers if n % 2}
    assert catalog.get_many([]) == {}
    assert catalog.uploads(sha(0)) == []


def test_files_come_ascending_by_hash_each_once_over_page_bounds(catalog, file, sha):
    count = 2345
    catalog.record([file(n) for n in range(count)], [])
    hashes = sorted(sha(n) for n in range(count))
    assert [record.hash for record in catalog.files()] == hashes
    assert [record.hash for record in catalog.files(after=hashes[1500])] == hashes[1501:]
    with_a = [value for value in hashes if value.startswith("a")]
    assert [record.hash for record in catalog.files(prefix="a")] == with_a
    assert [record.hash for record in catalog.files(prefix="a", after=with_a[3])] == with_a[4:]


def test_writing_goes_on_while_somebody_reads_all_files(catalog, file, sha):
    catalog.record([file(n) for n in range(1500)], [])
    reading = catalog.files()
    first = next(reading)
    catalog.record([file("late")], [])
    catalog.finish_removal(max(sha(n) for n in range(1500)))
    rest = [record.hash for record in reading]
    assert len(rest) == len(set(rest))
    assert {first.hash, *rest} - {sha("late")} == {sha(n) for n in range(1500)} - {
        max(sha(n) for n in range(1500))
    }


def test_a_shortened_hash_is_found_with_all_that_fit_up_to_the_limit(catalog):
    hashes = sorted("abcde" + digit + "9f" * 29 for digit in "0123456789abcdef")
    catalog.record([FileRecord(value, "x", 1, 0.0) for value in hashes], [])
    assert catalog.find("abcde") == hashes[:2]
    assert catalog.find("abcde", limit=99) == hashes
    assert catalog.find("abcdef") == [hashes[-1]]
    assert catalog.find("abcde9") == ["abcde9" + "9f" * 29]
    assert catalog.find(hashes[3]) == [hashes[3]]
    assert catalog.find("abcdf") == []


@pytest.mark.parametrize("prefix", ["xyz", "ABC", "%", "a'", "0" * 65])
def test_what_begins_no_hash_is_no_prefix(catalog, prefix):
    with pytest.raises(ValueError, match="beginning of a SHA-256"):
        catalog.find(prefix)


def test_what_waits_is_read_in_pages_of_ascending_keys(catalog, file, copy):
    numbers = range(30)
    queued = [copy(n, host, status="queued") for n in numbers for host in ("a", "b")]
    removing = [copy(n, "c", status="removing") for n in numbers]
    done = [copy(n, "d") for n in numbers] + [copy(n, "e", status="failed") for n in numbers]
    catalog.record([file(n) for n in numbers], [*queued, *removing, *done])

    def pages(host=None):
        after, seen = None, []
        while page := catalog.waiting(host=host, after=after, limit=7):
            assert len(page) <= 7
            seen += page
            after = (page[-1].hash, page[-1].host, page[-1].location)
        return seen

    def key(upload):
        return upload.hash, upload.host, upload.location

    assert pages() == sorted([*queued, *removing], key=key)
    assert pages("b") == sorted((u for u in queued if u.host == "b"), key=key)
    assert pages("c") == sorted(removing, key=key)
    assert pages("d") == []


def test_the_page_of_one_host_may_begin_after_the_key_of_another(catalog, file, copy):
    waiting = [copy(n, host, status="queued") for n in range(9) for host in ("a", "b", "c")]
    catalog.record([file(n) for n in range(9)], waiting)
    ordered = sorted(waiting, key=lambda upload: (upload.hash, upload.host))
    for index, upload in enumerate(ordered):
        after = (upload.hash, upload.host, upload.location)
        expected = [later for later in ordered[index + 1 :] if later.host == "b"]
        assert catalog.waiting(host="b", after=after) == expected


def test_keys_ascend_by_their_bytes_whatever_the_language_of_the_server(catalog, file, copy):
    hosts = ["B", "a", "A", "_", "-", "ä", "b", "10", "9"]
    catalog.record([file(1)], [copy(1, host, status="queued") for host in hosts])
    assert [upload.host for upload in catalog.waiting()] == sorted(hosts)


def test_copies_are_counted_by_host_status_and_kind(catalog, file, copy):
    catalog.record(
        [file(1, size=10), file(2, size=200)],
        [
            copy(1, "a"),
            copy(2, "a"),
            copy(1, "b", status="queued"),
            copy(2, "b", external=True),
        ],
    )
    assert catalog.status_counts() == [
        HostCount("a", "stored", False, 2, 210),
        HostCount("b", "queued", False, 1, 10),
        HostCount("b", "stored", True, 1, 200),
    ]


def test_forgetting_copies_deletes_just_these_and_missing_ones_are_no_error(
    catalog, file, copy, sha
):
    catalog.record([file(1)], [copy(1, "a"), copy(1, "b"), copy(1, "c", status="queued")])
    catalog.forget_uploads([copy(1, "a"), copy(1, "c", status="queued"), copy(1, "never")])
    assert catalog.uploads(sha(1)) == [copy(1, "b")]


def test_marking_for_removal_takes_the_pools_copies_and_leaves_external_ones(
    catalog, file, copy, sha
):
    external = copy(1, "e", external=True)
    catalog.record(
        [file(1), file(2)],
        [
            copy(1, "a"),
            copy(1, "b", status="failed"),
            copy(1, "c", status="queued"),
            external,
            copy(2, "a"),
        ],
    )
    marked = [copy(1, "a", status="removing"), copy(1, "b", status="removing")]
    assert catalog.mark_removing(sha(1)) == marked
    assert catalog.mark_removing(sha(1)) == marked
    assert catalog.uploads(sha(1)) == [*marked, external]
    assert catalog.uploads(sha(2)) == [copy(2, "a")]
    assert catalog.waiting() == marked


def test_a_removed_file_is_gone_when_its_last_copy_is(catalog, file, copy, sha):
    catalog.record([file(1)], [copy(1, "a"), copy(1, "b")])
    first, second = catalog.mark_removing(sha(1))
    assert not catalog.finish_removal(sha(1))
    catalog.forget_uploads([first])
    assert not catalog.finish_removal(sha(1))
    catalog.forget_uploads([second])
    assert catalog.exists(sha(1))
    assert catalog.finish_removal(sha(1))
    assert not catalog.exists(sha(1))
    assert catalog.finish_removal(sha(1))


@pytest.mark.parametrize(
    "keeps",
    [
        {"status": "stored"},
        {"status": "queued"},
        {"status": "removing"},
        {"status": "stored", "external": True},
        {"status": "failed", "external": True},
    ],
)
def test_a_copy_that_counts_keeps_the_file(catalog, file, copy, sha, keeps):
    catalog.record([file(1)], [copy(1, **keeps)])
    assert not catalog.finish_removal(sha(1))
    assert catalog.uploads(sha(1)) == [copy(1, **keeps)]


def test_a_failed_copy_of_the_pool_does_not_keep_the_file(catalog, file, copy, sha):
    catalog.record([file(1)], [copy(1, status="failed")])
    assert catalog.finish_removal(sha(1))
    assert catalog.uploads(sha(1)) == []


def test_the_meter_counts_by_month_in_utc(catalog):
    last_second = calendar.timegm((2026, 1, 31, 23, 59, 59))
    catalog.meter_add(1, 10, now=last_second)
    catalog.meter_add(2, 20, now=last_second)
    catalog.meter_add(4, 40, now=last_second + 1)
    assert catalog.meter_month(last_second) == (3, 30)
    assert catalog.meter_month(last_second + 1) == (4, 40)
    assert catalog.meter_month(calendar.timegm((2025, 12, 1, 0, 0, 0))) == (0, 0)
    assert catalog.meter_total() == (7, 70)


def test_the_meter_follows_utc_in_every_time_zone(catalog, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        moment = calendar.timegm((2026, 1, 31, 23, 0, 0))
        catalog.meter_add(1, 0, now=moment)
        assert catalog.meter_month(calendar.timegm((2026, 1, 1, 0, 0, 0))) == (1, 0)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_meter_never_counts_down(catalog):
    with pytest.raises(ValueError):
        catalog.meter_add(-1, 0)
    with pytest.raises(ValueError):
        catalog.record([], [], outgoing=-1)
    assert catalog.meter_total() == (0, 0)


def test_what_was_recorded_is_there_after_closing_and_opening(database, file, copy):
    with Catalog.open(database) as catalog:
        catalog.record([file(1)], [copy(1)], outgoing=5)
    with Catalog.open(database) as catalog:
        assert catalog.exists(file(1).hash)
        assert catalog.get(file(1).hash) == file(1)
        assert catalog.uploads(file(1).hash) == [copy(1)]
        assert catalog.meter_month() == (0, 5)


def test_a_catalog_in_memory_works_and_is_forgotten(file, copy):
    for location in (":memory:", "sqlite://"):
        with Catalog.open(location) as catalog:
            catalog.record([file(1)], [copy(1)])
            assert catalog.exists(file(1).hash)
            assert catalog.get(file(1).hash) == file(1)
            assert catalog.uploads(file(1).hash) == [copy(1)]
    with Catalog.open(":memory:") as catalog:
        assert catalog.totals() == (0, 0)


def test_closing_twice_is_no_error_and_calls_after_it_are(catalog, file, sha):
    catalog.record([file(1)], [])
    assert catalog.exists(sha(1))
    catalog.close()
    catalog.close()
    for call in (
        lambda: catalog.exists(sha(1)),
        lambda: catalog.get(sha(1)),
        lambda: catalog.record([file(2)], []),
        lambda: list(catalog.files()),
    ):
        with pytest.raises(CatalogError, match="is closed"):
            call()
