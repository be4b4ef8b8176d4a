"""Broken hosts: each a right host that breaks one promise.

Not collected by itself: `test_broken_hosts.py` runs the kit on all of them and looks at
which tests of the kit fail. Every lie names the test that must catch it; those that say
`only` are caught by nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

from cloudmanager.errors import (
    HostError,
    HostUnavailable,
    ObjectNotFound,
    SourceChanged,
)
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.model import Capabilities, Checksum, ObjectInfo
from cloudmanager.source import Source
from cloudmanager.testing import HostConformance, MemoryHost
from cloudmanager.testing.memory import Stored

FULL = MemoryHost.capabilities
SECRET = "open sesame"


@dataclass(frozen=True)
class Lie:
    """Caught by the test `catcher` of the kit; by no other one if `only`."""

    catcher: str
    only: bool


LIES: dict[str, Lie] = {}


def lie(catcher: str, *, only: bool = False, **declared: Any) -> Callable[[type], type]:
    """Run the kit on the host, which breaks what the test `catcher` is about."""

    def register(host: type[MemoryHost]) -> type[MemoryHost]:
        def open_host(_: HostConformance) -> Host:
            return host()

        def open_unreachable(_: HostConformance) -> Host:
            made = host("offline")
            made.offline = True
            return made

        def raw_read(_: HostConformance, made: Host, key: str) -> bytes:
            assert isinstance(made, MemoryHost)
            return made.objects[key].data

        def raw_write(_: HostConformance, made: Host, key: str, data: bytes) -> None:
            assert isinstance(made, MemoryHost)
            made.objects[key] = Stored(data)

        def arrange(self: HostConformance, made: Host, key: str, data: bytes) -> str:
            if made.capabilities.put:
                return HostConformance.arrange(self, made, key, data)
            raw_write(self, made, key, data)
            return made.location(key)

        name = f"Test{host.__name__}"
        body: dict[str, Any] = {
            "__module__": __name__,
            "capabilities": host.capabilities,
            "keeps_filename": True,
            "large": 300_000,
            "patience": 20.0,
            "open_host": open_host,
            "open_unreachable": open_unreachable,
            "raw_read": raw_read,
            "raw_write": raw_write,
            "arrange": arrange,
            **declared,
        }
        globals()[name] = type(name, (HostConformance,), body)
        assert name not in LIES
        assert callable(getattr(globals()[name], catcher)), "does not apply to this lie"
        LIES[name] = Lie(catcher, only)
        return host

    return register


class Writing(MemoryHost):
    """For lies about `put`: `keep` does what it does."""

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        self._online("put", self.location(key))
        return self._info(key, self.keep(key, source, sha256, filename, on_bytes))

    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        return self.store(key, Stored(self._taken(source, sha256, on_bytes), filename))

    def store(self, key: str, stored: Stored) -> Stored:
        with self.lock:
            self.objects[key] = stored
        return stored


# -- put -------------------------------------------------------------------------------------


@lie("test_what_was_put_comes_back")
class TakesBytesForText(MemoryHost):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        return super()._taken(source, sha256, on_bytes).decode("utf-8", "replace").encode()


@lie("test_an_empty_object_is_an_object")
class DropsEmptyObjects(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        return super().store(key, stored) if stored.data else stored


@lie("test_a_large_object_comes_back")
class KeepsTheFirstBlock(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        return super().store(key, Stored(stored.data[: self.block], stored.filename))


@lie("test_put_answers_with_what_stat_finds", only=True)
class AnswersWithTheWholePath(Writing):
    def put(self, key: str, source: Source, **more: Any) -> ObjectInfo:
        return replace(super().put(key, source, **more), key=f"pool/{key}")


@lie("test_put_answers_with_the_location_that_was_told_before", only=True)
class SpellsLocationsInTwoWays(MemoryHost):
    def _info(self, key: str, stored: Stored) -> ObjectInfo:
        return replace(super()._info(key, stored), location=super().location(key))

    def location(self, key: str) -> str:
        return super().location(key).replace("%C3%A4", "%c3%a4")


@lie("test_every_key_that_is_declared_is_kept_as_it_is", only=True)
class UnquotesTwice(MemoryHost):
    def _key_of(self, location: str, operation: str) -> str:
        return unquote(super()._key_of(location, operation))


@lie("test_every_key_that_is_declared_is_kept_as_it_is", only=True)
class TakesPlusForASpace(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        return super().store(key.replace("1+1", "1 1"), stored)

    def _stored(self, location: str, operation: str) -> Stored:
        return super()._stored(location.replace("1%2B1", "1%201"), operation)


@lie("test_what_was_put_lies_there_unchanged")
class CompressesAtRest(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        super().store(key, Stored(b"z" + zlib.compress(stored.data), stored.filename))
        return stored

    def _stored(self, location: str, operation: str) -> Stored:
        return self.plain(super()._stored(location, operation))

    def _info(self, key: str, stored: Stored) -> ObjectInfo:
        return super()._info(key, self.plain(stored))

    @staticmethod
    def plain(stored: Stored) -> Stored:
        if stored.data[:1] != b"z":
            return stored
        return Stored(zlib.decompress(stored.data[1:]), stored.filename)


@lie("test_a_source_that_gives_small_pieces_is_read_to_its_end", only=True)
class ReadsTrustedSourcesOnce(MemoryHost):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        if not source.trusted:
            return super()._taken(source, sha256, on_bytes)
        with source.open() as file:
            data = file.read(source.size)
        if on_bytes is not None:
            on_bytes(len(data))
        return data


@lie("test_every_byte_that_goes_out_is_told", only=True)
class TellsOnlyOfWholeBlocks(MemoryHost):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        def told(count: int) -> None:
            if on_bytes is not None and count == self.block:
                on_bytes(count)

        return super()._taken(source, sha256, told)


@lie("test_a_transfer_that_is_ended_leaves_no_part", only=True)
class KeepsWhatWasSentBeforeTheEnd(Writing):
    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        try:
            return super().keep(key, source, sha256, filename, on_bytes)
        except Exception as exc:
            if not isinstance(exc, SourceChanged):
                self.store(key, Stored(source.read(0, self.block)))
            raise


class Gullible(MemoryHost):
    """Reads as it likes."""

    def read_all(self, source: Source) -> bytes:
        blocks = []
        try:
            with source.open() as file:
                while block := file.read(self.block):
                    blocks.append(block)
        except OSError as exc:
            raise SourceChanged(f"{source} cannot be read") from exc
        return b"".join(blocks)

    def must_hash(self, data: bytes, sha256: str) -> bytes:
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SourceChanged("the source changed")
        return data


@lie("test_bytes_of_another_hash_are_refused")
class NeverHashes(Gullible):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        data = self.read_all(source)
        if len(data) != source.size:
            raise SourceChanged("the size changed")
        if on_bytes is not None:
            on_bytes(len(data))
        return data


@lie("test_bytes_of_another_hash_are_refused", only=True)
class DoesNotHashNothing(MemoryHost):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        return super()._taken(source, sha256, on_bytes) if source.size else b""


@lie("test_a_source_shorter_than_it_says_is_refused", only=True)
class IgnoresTheSize(Gullible):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        data = self.must_hash(self.read_all(source), sha256)
        if on_bytes is not None:
            on_bytes(len(data))
        return data


@lie("test_a_source_longer_than_it_says_is_refused", only=True)
class StopsAtTheSize(Gullible):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        data = self.read_all(source)
        if len(data) < source.size:
            raise SourceChanged("the source is too short")
        if on_bytes is not None:
            on_bytes(source.size)
        return self.must_hash(data[: source.size], sha256)


@lie("test_a_source_that_breaks_leaves_nothing")
class LetsErrorsOfTheSourceThrough(MemoryHost):
    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        try:
            return super()._taken(source, sha256, on_bytes)
        except SourceChanged as exc:
            if isinstance(exc.__cause__, OSError):
                raise exc.__cause__ from None
            raise


@lie("test_a_source_that_breaks_leaves_nothing")
class KeepsTheReadableHalf(Writing):
    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        try:
            return super().keep(key, source, sha256, filename, on_bytes)
        except SourceChanged as exc:
            if exc.__cause__ is not None and key not in self.objects:
                self.store(key, Stored(source.read(0, source.size // 2)))
            raise


@lie("test_a_partly_written_object_is_invisible", only=True)
class WritesInPlace(Writing):
    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        fresh = key not in self.objects and not source.trusted
        if fresh:
            self.store(key, Stored(b"", filename))
        try:
            return super().keep(key, source, sha256, filename, on_bytes)
        except BaseException:
            if fresh:
                self.objects.pop(key, None)
            raise


@lie("test_an_object_is_replaced")
class NeverReplaces(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        with self.lock:
            return self.objects.setdefault(key, stored)


@lie("test_a_damaged_object_is_replaced", only=True)
class BelievesItsMemory(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        known: dict[str, tuple[object, ...]] = vars(self).setdefault("known", {})
        if key in self.objects and known.get(key) == (stored.data, stored.filename):
            return stored
        known[key] = (stored.data, stored.filename)
        return super().store(key, stored)


@lie("test_a_replacement_that_fails_keeps_the_old_object")
class DeletesFirst(Writing):
    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        self.objects.pop(key, None)
        return super().keep(key, source, sha256, filename, on_bytes)


@lie("test_a_replacement_that_fails_keeps_the_old_object", only=True)
class DropsTheObjectWhenAReplacementFails(Writing):
    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        try:
            return super().keep(key, source, sha256, filename, on_bytes)
        except SourceChanged:
            self.objects.pop(key, None)
            raise


@lie("test_an_object_stays_whole_while_it_is_replaced", only=True)
class HidesTheOldObjectMeanwhile(Writing):
    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        old = self.objects.pop(key, None)
        try:
            return super().keep(key, source, sha256, filename, on_bytes)
        except BaseException:
            if old is not None:
                self.store(key, old)
            raise


@lie("test_a_name_that_is_told_is_the_name_that_was_given", only=True)
class FlattensNames(MemoryHost):
    def _info(self, key: str, stored: Stored) -> ObjectInfo:
        name = stored.filename
        flat = None if name is None else name.encode("ascii", "replace").decode()
        return replace(super()._info(key, stored), filename=flat)


@lie("test_a_put_whose_acknowledgement_was_lost_can_be_repeated", only=True)
class KeepsEveryCopyOfTheSame(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        old = self.objects.get(key)
        if old is not None and old.data == stored.data:
            super().store(f"{key} (2)", stored)
        return super().store(key, stored)


@lie("test_cleaning_touches_nothing_that_is_finished", only=True)
class CleansEverything(MemoryHost):
    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        del older_than
        for key in list(self.objects):
            del self.objects[key]
            yield f"removed {key}"


# -- delete ----------------------------------------------------------------------------------


@lie("test_what_was_deleted_is_gone")
class NeverDeletes(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            self._key_of(location, "delete")
            self._online("delete", location)


@lie("test_deleting_leaves_the_others", only=True)
class DeletesByPrefix(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            prefix = self._key_of(location, "delete")
            self._online("delete", location)
            for key in [key for key in list(self.objects) if key.startswith(prefix)]:
                self.objects.pop(key, None)


@lie("test_deleting_what_is_not_there_is_no_error")
class RefusesToDeleteNothing(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            self._stored(location, "delete")
            super().delete([location])


@lie("test_deleting_what_is_not_there_is_no_error", only=True)
class StopsAtTheFirstThatIsNotThere(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            if self._key_of(location, "delete") not in self.objects:
                self._online("delete", location)
                return
            super().delete([location])


@lie("test_a_deletion_whose_acknowledgement_was_lost_can_be_repeated")
class RefusesToDeleteAgain(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        deleted: set[str] = vars(self).setdefault("deleted", set())
        for location in locations:
            if location in deleted and self._key_of(location, "delete") not in self.objects:
                self._fail(ObjectNotFound, "deleted before", "delete", location)
            super().delete([location])
            deleted.add(location)


@lie("test_many_are_deleted_at_once", only=True)
class DeletesOnePage(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        super().delete(list(locations)[:25])


@lie("test_what_was_deleted_can_be_put_again", only=True)
class BuriesForEver(Writing):
    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            super().delete([location])
            if vars(self).get("last") == b"one":
                vars(self)["buried"] = location

    def store(self, key: str, stored: Stored) -> Stored:
        vars(self)["last"] = stored.data
        if vars(self).get("buried") == self.location(key):
            return stored
        return super().store(key, stored)


# -- get, read, stat -------------------------------------------------------------------------


@lie("test_an_object_is_read_and_measured")
class MeasuresWhatItSent(MemoryHost):
    """Counts a header of its own."""

    def stat(self, location: str) -> ObjectInfo:
        info = super().stat(location)
        return replace(info, size=info.size + 4)


@lie("test_blocks_are_bytes")
class GivesBuffers(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        for block in super().get(location, offset=offset, length=length):
            yield memoryview(block) if len(block) == self.block else block  # type: ignore[misc]

    def read(self, location: str, *, limit: int) -> bytes:
        return bytes(super().read(location, limit=limit))


@lie("test_stat_tells_times_in_utc", only=True)
class TellsLocalTimes(MemoryHost):
    def _info(self, key: str, stored: Stored) -> ObjectInfo:
        return replace(super()._info(key, stored), modified=stored.modified.replace(tzinfo=None))


@lie("test_checksums_that_are_told_are_true", only=True)
class HashesTheFirstBlock(MemoryHost):
    def _info(self, key: str, stored: Stored) -> ObjectInfo:
        first = hashlib.sha256(stored.data[: self.block]).hexdigest()
        return replace(super()._info(key, stored), checksum=Checksum("sha256", first))


@lie("test_checksums_that_are_told_are_true", only=True)
class DeclaresNoChecksums(MemoryHost):
    capabilities = Capabilities()


@lie("test_a_checksum_is_of_the_bytes_that_are_there_now", only=True)
class TakesItsOwnWordForIt(Writing):
    def put(self, key: str, source: Source, *, sha256: str, **more: Any) -> ObjectInfo:
        vars(self).setdefault("told", {})[key] = sha256
        return super().put(key, source, sha256=sha256, **more)

    def stat(self, location: str) -> ObjectInfo:
        info = super().stat(location)
        told = vars(self).get("told", {}).get(info.key)
        return info if told is None else replace(info, checksum=Checksum("sha256", told))


@lie("test_what_others_have_written_is_found", only=True)
class KnowsOnlyItsOwn(Writing):
    def store(self, key: str, stored: Stored) -> Stored:
        vars(self).setdefault("own", set()).add(key)
        return super().store(key, stored)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        own = vars(self).get("own", set())
        return (info for info in super().list(prefix, after=after) if info.key in own)


@lie("test_stat_of_what_is_missing_raises")
class StatsNothing(MemoryHost):
    def stat(self, location: str) -> ObjectInfo:
        try:
            return super().stat(location)
        except ObjectNotFound:
            return ObjectInfo(location, self._key_of(location, "stat"), 0)


@lie("test_get_of_what_is_missing_raises_before_the_first_byte")
class ReadsNothingAsEmpty(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        with contextlib.suppress(ObjectNotFound):
            yield from super().get(location, offset=offset, length=length)


@lie("test_get_of_what_is_missing_raises_before_the_first_byte", only=True)
class NoticesLate(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._key_of(location, "get")
        if not self.offline and offset == 0 and length is None:
            yield b""
        yield from super().get(location, offset=offset, length=length)


@lie("test_read_of_what_is_missing_raises", only=True)
class ReadGivesNothing(MemoryHost):
    def read(self, location: str, *, limit: int) -> bytes:
        try:
            return super().read(location, limit=limit)
        except ObjectNotFound:
            return b""


@lie("test_a_range_of_what_is_missing_raises")
class TakesWhatIsMissingForPastTheEnd(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        try:
            yield from super().get(location, offset=offset, length=length)
        except ObjectNotFound:
            if not offset:
                raise


@lie("test_a_range_is_exactly_what_was_asked_for")
class CountsTheLastByteToo(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return super().get(location, offset=offset, length=length and length + 1)


@lie("test_a_range_without_a_length_goes_to_the_end", only=True)
class IgnoresAnOffsetAlone(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        size = len(self._stored(location, "get").data)
        if length is None and offset < size:
            offset = 0
        return super().get(location, offset=offset, length=length)


@lie("test_a_range_past_the_end_gives_what_there_is", only=True)
class RefusesRangesPastTheEnd(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        size = len(self._stored(location, "get").data)
        if length is not None and offset < size < offset + length and size == 10:
            self._fail(HostError, "416 Range Not Satisfiable", "get", location)
        return super().get(location, offset=offset, length=length)


@lie("test_a_range_that_starts_past_the_end_is_empty", only=True)
class RefusesRangesThatStartPastTheEnd(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length != 0 and offset and offset >= len(self._stored(location, "get").data):
            self._fail(HostError, "416 Range Not Satisfiable", "get", location)
        return super().get(location, offset=offset, length=length)


@lie("test_a_range_of_no_bytes_is_empty", only=True)
class TakesNoBytesForAll(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return super().get(location, offset=offset, length=length or None)


@lie("test_ranges_of_a_large_object_make_it_up", only=True)
class EndsRangesAfterABlock(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return super().get(location, offset=offset, length=length and min(length, self.block))


@lie("test_a_range_is_unsupported_before_any_byte")
class AnswersRangesWithTheWhole(MemoryHost):
    capabilities = replace(FULL, range_read=False)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return super().get(location)


@lie("test_read_gives_a_whole_small_object", only=True)
class ReadsOneLess(MemoryHost):
    def read(self, location: str, *, limit: int) -> bytes:
        data = super().read(location, limit=limit)
        return data[: max(0, limit - 1)]


@lie("test_read_refuses_an_object_longer_than_it_should_be", only=True)
class CutsWhatIsTooLong(MemoryHost):
    def read(self, location: str, *, limit: int) -> bytes:
        return b"".join(self.get(location))[:limit]


@lie("test_two_readers_do_not_disturb_each_other", only=True)
class HasOneReader(MemoryHost):
    """A new reader in the same thread ends the one before."""

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        mine = object()
        thread = threading.get_ident()
        current: dict[int, object] = vars(self).setdefault("current", {})
        for number, block in enumerate(super().get(location, offset=offset, length=length)):
            if not number:
                current[thread] = mine
            elif current[thread] is not mine:
                self._fail(HostUnavailable, "the connection is in use", "get", location)
            yield block


@lie("test_a_reader_may_stop_early", only=True)
class LosesAConnectionToEveryReaderThatStops(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        blocks = super().get(location, offset=offset, length=length)
        if vars(self).setdefault("lost", 0) >= 2:
            self._fail(HostUnavailable, "no connection is left", "get", location)
        try:
            yield from blocks
        except GeneratorExit:
            vars(self)["lost"] += 1
            raise


@lie("test_an_object_deleted_under_its_reader_ends_whole_or_in_an_error", only=True)
class EndsEarlyWhenTheObjectGoes(MemoryHost):
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        for number, block in enumerate(super().get(location, offset=offset, length=length)):
            if number and self._key_of(location, "get") not in self.objects:
                return
            yield block


# -- list ------------------------------------------------------------------------------------


class Listing(MemoryHost):
    """For lies about `list`: `infos` are all objects in order."""

    def infos(self) -> list[ObjectInfo]:
        return list(super().list())


@lie("test_an_empty_host_lists_nothing")
class ListsItself(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        yield from super().list(prefix, after=after)
        if not self.objects and not after:
            yield ObjectInfo(f"memory://{self.name}/", "", 0)


@lie("test_objects_are_listed_in_the_order_of_their_bytes")
class SortsAsJavaScript(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        found = super().list(prefix, after=after)
        return iter(sorted(found, key=lambda info: info.key.encode("utf-16-be")))


@lie("test_a_listing_tells_what_stat_tells", only=True)
class ListsWithoutSizes(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return (replace(info, size=0) for info in super().list(prefix, after=after))


@lie("test_a_prefix_is_that_of_the_whole_key")
class TakesAPrefixForAFolder(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rstrip("/") + "/" if prefix else ""
        return super().list(folder, after=after)


@lie("test_a_prefix_is_that_of_the_whole_key", only=True)
class IgnoresTheCaseOfPrefixes(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        wanted = prefix.lower()
        found = super().list(after=after)
        return (info for info in found if info.key.lower().startswith(wanted))


@lie("test_a_listing_resumes_after_every_key")
class BeginsWithTheKeyAfterWhichToBegin(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        if after and after in self.objects and after.startswith(prefix):
            yield self._info(after, self.objects[after])
        yield from super().list(prefix, after=after)


@lie("test_a_listing_resumes_after_a_key_that_is_not_there")
class BeginsAnewAfterAKeyThatIsNotThere(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return super().list(prefix, after=after if after in self.objects or not after else "")


@lie("test_a_listing_below_a_prefix_resumes", only=True)
class ForgetsAfterBelowAPrefix(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return super().list(prefix, after="" if prefix else after)


@lie("test_a_long_listing_has_each_object_once", only=True)
class ListsOnePage(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        for number, info in enumerate(super().list(prefix, after=after)):
            if number == 25:
                return
            yield info


@lie("test_two_listings_do_not_disturb_each_other", only=True)
class HasOneListing(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        mine = object()
        thread = threading.get_ident()
        current: dict[int, object] = vars(self).setdefault("current", {})
        current[thread] = mine
        for info in super().list(prefix, after=after):
            yield info
            if current[thread] is not mine:
                return


@lie("test_what_was_deleted_is_not_listed", only=True)
class ListsWhatItListedBefore(Listing):
    def delete(self, locations: Iterable[str]) -> None:
        wanted = list(locations)
        if len(wanted) == 2:
            vars(self)["before"] = self.infos()
        super().delete(wanted)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        before: list[ObjectInfo] = vars(self).get("before", [])
        return iter(before) if before else super().list(prefix, after=after)


@lie("test_a_listing_while_objects_vanish_ends_clean")
class StumblesOverWhatVanishes(Listing):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix, after=after):
            yield self._info(info.key, self.objects[info.key])


@lie("test_listing_is_unsupported")
class ListsNothingWhereItCannotList(MemoryHost):
    capabilities = replace(FULL, list=False)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        del prefix, after
        return iter(())


# -- manners ---------------------------------------------------------------------------------


@lie("test_it_can_do_what_it_was_declared_to_do", only=True)
class CanDoLessThanItSaid(MemoryHost):
    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self.capabilities = replace(FULL, create_only=True)


@lie("test_check_lets_a_working_host_pass", only=True)
class NeverPassesItsCheck(MemoryHost):
    def check(self) -> None:
        self._fail(HostError, "a folder of that name is needed", "check", "")


@lie("test_its_name_is_safe_to_log", only=True)
class IsCalledByItsUrl(MemoryHost):
    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self.name = "ftp://me:password@server"


@lie("test_its_repr_names_it", only=True)
class IsNobody(MemoryHost):
    def __repr__(self) -> str:
        return "<a host>"


@lie("test_it_shows_no_secret", only=True, secrets=(SECRET,))
class ShowsItsPassword(MemoryHost):
    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self.options = {"password": SECRET}


@lie("test_it_may_be_closed_twice", only=True)
class ClosesOnce(MemoryHost):
    def close(self) -> None:
        if vars(self).get("closes", 0) == 1:
            raise ValueError("it is closed")
        vars(self)["closes"] = vars(self).get("closes", 0) + 1


@lie("test_a_location_is_a_url_of_the_host", only=True)
class WritesLocationsAsTheyAre(MemoryHost):
    def location(self, key: str) -> str:
        return f"memory://{self.name}/{key.replace('%', '%25')}"


@lie("test_what_it_holds_it_owns")
class AnswersWithInnerLocations(MemoryHost):
    def stat(self, location: str) -> ObjectInfo:
        return replace(super().stat(location), location="inner://1")


@lie("test_it_owns_no_location_of_others")
class OwnsItsNeighbours(MemoryHost):
    def owns(self, location: str) -> bool:
        return location.startswith(f"memory://{self.name}")


@lie("test_it_owns_no_location_of_others", only=True)
class OwnsEveryUrl(MemoryHost):
    def owns(self, location: str) -> bool:
        return "://" in location and "gopher" not in location

    def _key_of(self, location: str, operation: str) -> str:
        if not MemoryHost.owns(self, location):
            self._fail(HostError, "the location is not on this host", operation, location)
        return super()._key_of(location, operation)


@lie("test_a_location_of_others_is_refused", only=True)
class DeletesElsewhereInSilence(MemoryHost):
    def delete(self, locations: Iterable[str]) -> None:
        super().delete(each for each in locations if self.owns(each))


@lie("test_putting_is_unsupported")
class SwallowsWhatItCannotPut(MemoryHost):
    capabilities = replace(FULL, put=False)

    def put(self, key: str, source: Source, **more: Any) -> ObjectInfo:
        del more
        return ObjectInfo(self.location(key), key, source.size)


@lie("test_deleting_is_unsupported")
class SwallowsWhatItCannotDelete(MemoryHost):
    capabilities = replace(FULL, delete=False)

    def delete(self, locations: Iterable[str]) -> None:
        del locations


@lie("test_signed_links_are_unsupported")
class SignsWithoutAKey(MemoryHost):
    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        del expires, filename
        return location


@lie("test_anybody_can_follow_a_signed_link", only=True)
class LinksWithoutTheName(MemoryHost):
    capabilities = replace(FULL, signed_urls=True)

    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        del expires, filename
        data = base64.b64encode(self._stored(location, "signed_url").data).decode()
        return f"data:application/octet-stream;base64,{data}"


# -- a server that is not there --------------------------------------------------------------


@lie("test_an_unreachable_host_fails_clean")
class LetsTheSystemsErrorsThrough(MemoryHost):
    def _online(self, operation: str, location: str = "") -> None:
        if self.offline and operation != "list":
            raise ConnectionRefusedError(111, "Connection refused")
        super()._online(operation, location)


@lie("test_an_unreachable_host_fails_clean", only=True)
class ChecksNothing(MemoryHost):
    def check(self) -> None:
        return


@lie("test_a_listing_that_fails_is_never_an_empty_one", only=True)
class ListsNothingWhenItFails(MemoryHost):
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        with contextlib.suppress(HostUnavailable):
            yield from super().list(prefix, after=after)


@lie("test_an_unreachable_host_does_not_say_that_an_object_is_missing", only=True)
class TakesAnOutageForALoss(MemoryHost):
    def _online(self, operation: str, location: str = "") -> None:
        if self.offline and operation == "stat":
            self._fail(ObjectNotFound, "no answer", operation, location)
        super()._online(operation, location)


@lie("test_names_and_locations_need_no_server", only=True)
class AsksTheServerWhatItOwns(MemoryHost):
    def owns(self, location: str) -> bool:
        return not self.offline and super().owns(location)

    def _key_of(self, location: str, operation: str) -> str:
        if not MemoryHost.owns(self, location):
            self._fail(HostError, "the location is not on this host", operation, location)
        return unquote(location.removeprefix(f"memory://{self.name}/"))


@lie("test_what_it_lacks_is_unsupported_before_any_io", only=True)
class AsksTheServerWhatItLacks(MemoryHost):
    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        self._online("signed_url", location)
        return super().signed_url(location, expires=expires, filename=filename)


# -- threads ---------------------------------------------------------------------------------


@lie("test_many_threads_read_one_object")
class IsOfOneThread(MemoryHost):
    def __init__(self, name: str = "memory") -> None:
        super().__init__(name)
        self.thread = threading.get_ident()

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if threading.get_ident() != self.thread:
            raise RuntimeError("made in another thread")
        return super().get(location, offset=offset, length=length)


@lie("test_many_threads_put_and_read_the_same_objects", only=True)
class SharesItsBuffer(Writing):
    """Two puts at the same time write into each other."""

    def keep(
        self,
        key: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> Stored:
        if not source.trusted:
            return super().keep(key, source, sha256, filename, on_bytes)
        vars(self)["buffer"] = self._taken(source, sha256, on_bytes)
        if 20_000 < source.size < 40_000:
            time.sleep(0.005)  # as long as a slow disk takes
        return self.store(key, Stored(vars(self)["buffer"], filename))
