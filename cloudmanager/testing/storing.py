"""What `put` and `delete` promise."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cloudmanager.errors import HostUnavailable, ObjectNotFound, SourceChanged
from cloudmanager.hosts.base import Host
from cloudmanager.source import BytesSource
from cloudmanager.testing.arrangement import Arrangement, needs, noise, sha256_of
from cloudmanager.testing.faulty import Fault, FaultPlan, FaultyHost
from cloudmanager.testing.sources import BrokenSource, LooseSource

__all__ = ["Deleting", "Storing"]


class Storing(Arrangement):
    @needs("put")
    def test_what_was_put_comes_back(self, host: Host) -> None:
        data = noise(10_000)
        location = self.put(host, "6f/object", data).location
        assert sha256_of(self.bytes_of(host, location)) == sha256_of(data)

    @needs("put")
    def test_an_empty_object_is_an_object(self, host: Host) -> None:
        location = self.put(host, "6f/empty", b"").location
        assert self.bytes_of(host, location) == b""
        assert host.stat(location).size == 0

    @needs("put")
    def test_a_large_object_comes_back(self, host: Host) -> None:
        data = noise(self.large)
        source = LooseSource(data)
        location = host.put("6f/large", source, sha256=sha256_of(data)).location
        assert sha256_of(self.bytes_of(host, location)) == sha256_of(data)

    @needs("put")
    def test_put_answers_with_what_stat_finds(self, host: Host) -> None:
        answer = self.put(host, "6f/object", b"0123456789")
        found = host.stat(answer.location)
        assert (answer.key, answer.size) == ("6f/object", 10)
        assert (found.location, found.key, found.size) == (answer.location, answer.key, 10)

    @needs("put", "told_location")
    def test_put_answers_with_the_location_that_was_told_before(self, host: Host) -> None:
        for key in ("6f/object", "ä b/100%~"):
            told = host.location(key)
            assert self.put(host, key, b"x").location == told

    @needs("put")
    def test_every_key_that_is_declared_is_kept_as_it_is(self, host: Host) -> None:
        locations = {}
        for key in self.keys:
            locations[key] = self.put(host, key, key.encode()).location
        assert len(set(locations.values())) == len(self.keys)
        for key, location in locations.items():
            assert host.owns(location)
            assert host.stat(location).key == key
            assert self.bytes_of(host, location) == key.encode()
        if host.capabilities.list:
            assert {info.key for info in host.list()} == set(self.keys)

    @needs("put", "raw")
    def test_what_was_put_lies_there_unchanged(self, host: Host) -> None:
        data = noise(100_000)
        self.put(host, "6f/object", data)
        assert sha256_of(self.raw_read(host, "6f/object")) == sha256_of(data)

    @needs("put")
    def test_a_source_that_gives_small_pieces_is_read_to_its_end(self, host: Host) -> None:
        data = noise(5_000)
        trusted = LooseSource(data, piece=999)
        trusted.trusted = True
        for source in (LooseSource(data, piece=999), trusted):
            location = host.put("6f/object", source, sha256=sha256_of(data)).location
            assert sha256_of(self.bytes_of(host, location)) == sha256_of(data)

    @needs("put")
    def test_every_byte_that_goes_out_is_told(self, host: Host) -> None:
        for data in (b"", b"x", noise(self.large)):
            told: list[int] = []
            host.put(
                f"6f/{len(data)}", BytesSource(data), sha256=sha256_of(data), on_bytes=told.append
            )
            assert sum(told) == len(data)

    @needs("put")
    def test_a_transfer_that_is_ended_leaves_no_part(self, host: Host) -> None:
        class Ended(Exception):
            pass

        def end(_: int) -> None:
            raise Ended

        data = noise(self.large)
        with pytest.raises(Ended):
            host.put("6f/object", BytesSource(data), sha256=sha256_of(data), on_bytes=end)
        try:
            found = self.bytes_of(host, self.absent(host, "6f/object"))
        except ObjectNotFound:
            return
        # It was told when all of it was there.
        assert sha256_of(found) == sha256_of(data)

    @needs("put")
    def test_bytes_of_another_hash_are_refused(self, host: Host) -> None:
        for size in (0, 1_000, self.large):
            source = LooseSource(noise(size))
            with pytest.raises(SourceChanged):
                host.put("6f/object", source, sha256="0" * 64)
            self.is_absent(host, "6f/object", self.absent(host, "6f/object"))

    @needs("put")
    def test_a_source_shorter_than_it_says_is_refused(self, host: Host) -> None:
        data = noise(20_000)
        with pytest.raises(SourceChanged):
            host.put("6f/object", LooseSource(data, size=20_001), sha256=sha256_of(data))
        self.is_absent(host, "6f/object", self.absent(host, "6f/object"))

    @needs("put")
    def test_a_source_longer_than_it_says_is_refused(self, host: Host) -> None:
        # The hash is that of the first bytes: only looking for more tells.
        data = noise(20_000)
        with pytest.raises(SourceChanged):
            host.put("6f/object", LooseSource(data + b"x", size=20_000), sha256=sha256_of(data))
        self.is_absent(host, "6f/object", self.absent(host, "6f/object"))

    @needs("put")
    def test_a_source_that_breaks_leaves_nothing(self, host: Host) -> None:
        data = noise(self.large)
        self.refused_source(
            lambda: host.put("6f/object", BrokenSource(data), sha256=sha256_of(data))
        )
        self.is_absent(host, "6f/object", self.absent(host, "6f/object"))

    @needs("put", "atomic_put")
    def test_a_partly_written_object_is_invisible(self, host: Host) -> None:
        data = noise(self.large)
        location = self.absent(host, "6f/object")
        answer = self.while_half_is_sent(
            host, "6f/object", data, lambda: self.is_absent(host, "6f/object", location)
        )
        assert sha256_of(self.bytes_of(host, answer.location)) == sha256_of(data)

    @needs("put")
    def test_an_object_is_replaced(self, host: Host) -> None:
        for data in (b"damaged, and longer", b"right", noise(self.large), b""):
            location = self.put(host, "6f/object", data).location
            assert sha256_of(self.bytes_of(host, location)) == sha256_of(data)
            assert host.stat(location).size == len(data)

    @needs("put", "raw")
    def test_a_damaged_object_is_replaced(self, host: Host) -> None:
        location = self.put(host, "6f/object", b"right").location
        self.raw_write(host, "6f/object", b"wrong")
        assert self.put(host, "6f/object", b"right").location == location
        assert self.raw_read(host, "6f/object") == b"right"

    @needs("put", "atomic_put")
    def test_a_replacement_that_fails_keeps_the_old_object(self, host: Host) -> None:
        location = self.put(host, "6f/object", b"old").location
        data = noise(self.large)
        with pytest.raises(SourceChanged):
            host.put("6f/object", LooseSource(data), sha256="0" * 64)
        assert self.bytes_of(host, location) == b"old"
        self.refused_source(
            lambda: host.put("6f/object", BrokenSource(data), sha256=sha256_of(data))
        )
        assert self.bytes_of(host, location) == b"old"
        assert host.stat(location).size == 3

    @needs("put", "atomic_put")
    def test_an_object_stays_whole_while_it_is_replaced(self, host: Host) -> None:
        location = self.put(host, "6f/object", b"old").location
        data = noise(self.large)

        def look() -> None:
            assert host.stat(location).size == 3
            assert self.bytes_of(host, location) == b"old"

        answer = self.while_half_is_sent(host, "6f/object", data, look)
        assert sha256_of(self.bytes_of(host, answer.location)) == sha256_of(data)

    @needs("put")
    def test_a_name_that_is_told_is_the_name_that_was_given(self, host: Host) -> None:
        names = ["plain.txt", "grüße 日本.tar.gz", 'a "quoted"; name=%41.pdf', None]
        for name in names:
            answer = self.put(host, "6f/object", b"x", filename=name)
            assert answer.filename in (None, name)
            found = host.stat(answer.location).filename
            assert found == name if self.keeps_filename else found in (None, name)

    @needs("put")
    def test_a_put_whose_acknowledgement_was_lost_can_be_repeated(self, host: Host) -> None:
        faulty = FaultyHost(host, FaultPlan.script({("put", 0): Fault.LOST}))
        with pytest.raises(HostUnavailable):
            self.put(faulty, "6f/object", b"0123456789")
        location = self.put(faulty, "6f/object", b"0123456789").location
        assert self.bytes_of(host, location) == b"0123456789"
        if host.capabilities.list:
            assert [info.location for info in host.list()] == [location]

    @needs("put")
    def test_cleaning_touches_nothing_that_is_finished(self, host: Host) -> None:
        location = self.put(host, "6f/object", b"kept").location
        self.refused_source(
            lambda: host.put("6f/broken", BrokenSource(noise(self.large)), sha256="0" * 64)
        )
        for described in host.clean(older_than=timedelta(0)):
            self.is_clean(described)
        assert self.bytes_of(host, location) == b"kept"
        self.is_absent(host, "6f/broken", self.absent(host, "6f/broken"))


class Deleting(Arrangement):
    @needs("delete")
    def test_what_was_deleted_is_gone(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", b"x")
        host.delete([location])
        self.is_absent(host, "6f/object", location)

    @needs("delete")
    def test_deleting_leaves_the_others(self, host: Host) -> None:
        names = ["6f/object", "6f/object2", "6f/objec", "6/f"]
        locations = {key: self.arrange(host, key, key.encode()) for key in names}
        host.delete([locations.pop("6f/object")])
        host.delete([])
        for key, location in locations.items():
            assert self.bytes_of(host, location) == key.encode()

    @needs("delete")
    def test_deleting_what_is_not_there_is_no_error(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", b"x")
        host.delete([self.absent(host, "6f/never")])
        host.delete([self.absent(host, "6f/never"), location, self.absent(host, "7f/never")])
        self.is_absent(host, "6f/object", location)
        host.delete([location])

    @needs("delete")
    def test_many_are_deleted_at_once(self, host: Host) -> None:
        locations = [self.arrange(host, f"6f/{n}", b"x") for n in range(self.many)]
        host.delete(iter(locations))  # any iterable does, and it is gone through once
        for location in (locations[0], locations[self.many // 2], locations[-1]):
            with pytest.raises(ObjectNotFound):
                host.stat(location)

    @needs("delete")
    def test_a_deletion_whose_acknowledgement_was_lost_can_be_repeated(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", b"x")
        faulty = FaultyHost(host, FaultPlan.script({("delete", 0): Fault.LOST}))
        with pytest.raises(HostUnavailable):
            faulty.delete([location])
        faulty.delete([location])
        self.is_absent(host, "6f/object", location)

    @needs("put", "delete")
    def test_what_was_deleted_can_be_put_again(self, host: Host) -> None:
        host.delete([self.put(host, "6f/object", b"one").location])
        location = self.put(host, "6f/object", b"two!").location
        assert self.bytes_of(host, location) == b"two!"
