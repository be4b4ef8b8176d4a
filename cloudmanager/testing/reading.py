"""What `get`, `read` and `stat` promise."""

from __future__ import annotations

from datetime import timedelta

from cloudmanager.errors import HostError, IntegrityError, ObjectNotFound, Unsupported
from cloudmanager.hosts.base import Host
from cloudmanager.testing.arrangement import Arrangement, needs, noise, sha256_of

__all__ = ["Reading"]

DIGITS = b"0123456789"


class Reading(Arrangement):
    def test_an_object_is_read_and_measured(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        assert self.bytes_of(host, location) == DIGITS
        assert host.stat(location).size == 10

    def test_blocks_are_bytes(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", noise(self.large))
        assert {type(block) for block in host.get(location)} == {bytes}

    def test_stat_tells_times_in_utc(self, host: Host) -> None:
        modified = host.stat(self.arrange(host, "6f/object", b"x")).modified
        assert modified is None or modified.utcoffset() == timedelta(0)

    def test_checksums_that_are_told_are_true(self, host: Host) -> None:
        for data in (b"", DIGITS, noise(self.large)):
            key = f"6f/{len(data)}"
            location = self.arrange(host, key, data)
            infos = [host.stat(location)]
            if host.capabilities.put:
                infos.append(self.put(host, key, data))
            if host.capabilities.list:
                infos += [info for info in host.list() if info.key == key]
            for info in infos:
                if info.checksum is not None:
                    assert info.checksum.kind in host.capabilities.checksums
                    self.proves(info.checksum, data)

    @needs("put", "raw")
    def test_a_checksum_is_of_the_bytes_that_are_there_now(self, host: Host) -> None:
        location = self.put(host, "6f/object", b"what we have sent").location
        self.raw_write(host, "6f/object", b"what somebody put")
        info = host.stat(location)
        if info.checksum is not None:
            self.proves(info.checksum, b"what somebody put")
        assert self.bytes_of(host, location) == b"what somebody put"

    @needs("raw")
    def test_what_others_have_written_is_found(self, host: Host) -> None:
        self.raw_write(host, "6f/object", DIGITS)
        location = host.location("6f/object")
        assert host.stat(location).size == 10
        assert self.bytes_of(host, location) == DIGITS
        if host.capabilities.list:
            assert [info.key for info in host.list()] == ["6f/object"]

    # -- what is missing -----------------------------------------------------------------

    def test_stat_of_what_is_missing_raises(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        error = self.fails(host, "stat", location, lambda: host.stat(location), ObjectNotFound)
        assert not error.retryable

    def test_get_of_what_is_missing_raises_before_the_first_byte(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        error = self.fails(host, "get", location, lambda: next(host.get(location)), ObjectNotFound)
        assert not error.retryable

    def test_read_of_what_is_missing_raises(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        self.fails(host, "get", location, lambda: host.read(location, limit=10), ObjectNotFound)

    @needs("range_read")
    def test_a_range_of_what_is_missing_raises(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        self.fails(
            host,
            "get",
            location,
            lambda: self.bytes_of(host, location, offset=3, length=4),
            ObjectNotFound,
        )

    # -- ranges --------------------------------------------------------------------------

    @needs("range_read")
    def test_a_range_is_exactly_what_was_asked_for(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        for offset in range(10):
            for length in range(1, 11 - offset):
                found = self.bytes_of(host, location, offset=offset, length=length)
                assert found == DIGITS[offset : offset + length]

    @needs("range_read")
    def test_a_range_without_a_length_goes_to_the_end(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        assert self.bytes_of(host, location, offset=1) == DIGITS[1:]
        assert self.bytes_of(host, location, offset=9) == DIGITS[9:]

    @needs("range_read")
    def test_a_range_past_the_end_gives_what_there_is(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        assert self.bytes_of(host, location, offset=8, length=5) == b"89"
        assert self.bytes_of(host, location, length=11) == DIGITS

    @needs("range_read")
    def test_a_range_that_starts_past_the_end_is_empty(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        for offset in (10, 11, 1_000_000):
            assert self.bytes_of(host, location, offset=offset) == b""
            assert self.bytes_of(host, location, offset=offset, length=3) == b""

    @needs("range_read")
    def test_a_range_of_no_bytes_is_empty(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        for offset in (0, 5, 10):
            assert self.bytes_of(host, location, offset=offset, length=0) == b""

    @needs("range_read")
    def test_ranges_of_a_large_object_make_it_up(self, host: Host) -> None:
        data = noise(self.large)
        location = self.arrange(host, "6f/large", data)
        step = self.large // 3 + 1
        ranges = [
            self.bytes_of(host, location, offset=at, length=step)
            for at in range(0, self.large, step)
        ]
        assert [len(each) for each in ranges] == [step, step, self.large - 2 * step]
        assert sha256_of(b"".join(ranges)) == sha256_of(data)

    @needs("no_range_read")
    def test_a_range_is_unsupported_before_any_byte(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        for offset, length in ((1, None), (0, 1), (3, 4)):
            self.fails(
                host,
                "get",
                None,
                lambda offset=offset, length=length: self.bytes_of(  # type: ignore[misc]
                    host, location, offset=offset, length=length
                ),
                Unsupported,
            )

    # -- read, and several readers -------------------------------------------------------

    def test_read_gives_a_whole_small_object(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", DIGITS)
        assert host.read(location, limit=10) == DIGITS
        assert host.read(location, limit=11) == DIGITS
        assert host.read(self.arrange(host, "6f/empty", b""), limit=0) == b""

    def test_read_refuses_an_object_longer_than_it_should_be(self, host: Host) -> None:
        for data in (DIGITS, noise(self.large)):
            location = self.arrange(host, f"6f/{len(data)}", data)
            self.fails(
                host,
                "get",
                location,
                lambda location=location: host.read(location, limit=9),  # type: ignore[misc]
                IntegrityError,
            )

    def test_two_readers_do_not_disturb_each_other(self, host: Host) -> None:
        data = noise(self.large), noise(self.large, 1)
        readers = [
            host.get(self.arrange(host, f"6f/{number}", each)) for number, each in enumerate(data)
        ]
        firsts = [next(reader) for reader in readers]
        rests = [b"".join(reader) for reader in readers]
        assert [sha256_of(a + b) for a, b in zip(firsts, rests, strict=True)] == [
            sha256_of(each) for each in data
        ]

    def test_a_reader_may_stop_early(self, host: Host) -> None:
        data = noise(self.large)
        location = self.arrange(host, "6f/object", data)
        for _ in range(3):
            reader = host.get(location)
            assert data.startswith(next(reader))
            reader.close()  # type: ignore[attr-defined]
        assert sha256_of(self.bytes_of(host, location)) == sha256_of(data)

    @needs("delete")
    def test_an_object_deleted_under_its_reader_ends_whole_or_in_an_error(self, host: Host) -> None:
        data = noise(self.large)
        location = self.arrange(host, "6f/object", data)
        reader = host.get(location)
        got = [next(reader)]
        host.delete([location])
        error: HostError | None = None
        try:
            got += reader
        except HostError as exc:
            error = exc
        if error is None:
            assert sha256_of(b"".join(got)) == sha256_of(data)
        else:
            assert (error.operation, error.location) == ("get", location)
            self.is_clean(str(error))
