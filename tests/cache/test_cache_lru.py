"""The cache against a model that is too simple to be wrong."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from contextlib import ExitStack

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudmanager.cache import Cache
from cloudmanager.errors import Busy, CacheFull

NAMES = st.integers(0, 15)


def data_of(name: int) -> bytes:
    """The content of a file: its size differs from that of the others, 0 to 285 bytes."""
    return bytes([name]) * (name * 19)


def sha_of(name: int) -> str:
    return hashlib.sha256(data_of(name)).hexdigest()


class Model:
    """An ordered dictionary, the least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.files: OrderedDict[int, int] = OrderedDict()
        self.pins: dict[int, int] = {}
        self.owed: set[int] = set()
        self.reserved = 0

    def kept(self, name: int) -> bool:
        return name in self.owed or self.pins.get(name, 0) > 0

    def make_room(self, size: int, capacity: int | None = None) -> bool:
        limit = self.capacity if capacity is None else capacity
        left = self.files.copy()
        for name in list(left):
            if sum(left.values()) + self.reserved + size <= limit:
                break
            if not self.kept(name):
                del left[name]
        if sum(left.values()) + self.reserved + size > limit:
            return False
        self.files = left
        return True

    def use(self, name: int) -> None:
        self.files.move_to_end(name)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.cache = Cache(self.directory.name, 1_000)
        self.model = Model(1_000)
        self.open_pins: list[tuple[int, ExitStack]] = []
        self.flying: list[tuple[int, object]] = []

    @rule(name=NAMES, owed=st.booleans())
    def add(self, name: int, owed: bool) -> None:
        size = len(data_of(name))
        fits = self.model.make_room(size)
        try:
            with self.cache.reserve(size) as reservation:
                reservation.path.write_bytes(data_of(name))
                reservation.commit(sha_of(name), owed=owed)
        except CacheFull:
            assert not fits
            return
        assert fits
        self.model.files[name] = size
        self.model.use(name)
        if owed:
            self.model.owed.add(name)

    @rule(name=NAMES)
    def hit(self, name: int) -> None:
        path = self.cache.path(sha_of(name))
        assert (path is not None) == (name in self.model.files)
        if path is not None:
            assert path.read_bytes() == data_of(name)
            self.model.use(name)

    @rule(name=NAMES)
    def settle(self, name: int) -> None:
        self.cache.settle(sha_of(name))
        self.model.owed.discard(name)

    @rule(name=NAMES)
    def owe(self, name: int) -> None:
        there = self.cache.owe(sha_of(name))
        assert there == (name in self.model.files)
        if there:
            self.model.owed.add(name)
            self.model.use(name)

    @rule(name=NAMES)
    def pin(self, name: int) -> None:
        stack = ExitStack()
        path = stack.enter_context(self.cache.pinned(sha_of(name)))
        assert (path is not None) == (name in self.model.files)
        if path is not None:
            self.model.use(name)
            self.model.pins[name] = self.model.pins.get(name, 0) + 1
            self.open_pins.append((name, stack))

    @precondition(lambda self: self.open_pins)
    @rule(index=st.integers(0, 99))
    def unpin(self, index: int) -> None:
        name, stack = self.open_pins.pop(index % len(self.open_pins))
        stack.close()
        self.model.pins[name] -= 1
        self.model.use(name)

    @rule(size=st.integers(0, 400))
    def reserve(self, size: int) -> None:
        fits = self.model.make_room(size)
        try:
            self.flying.append((size, self.cache.reserve(size)))
        except CacheFull:
            assert not fits
            return
        assert fits
        self.model.reserved += size

    @precondition(lambda self: self.flying)
    @rule()
    def abort(self) -> None:
        size, reservation = self.flying.pop()
        reservation.abort()  # type: ignore[attr-defined]
        self.model.reserved -= size

    @rule(name=NAMES)
    def remove(self, name: int) -> None:
        pinned = self.model.pins.get(name, 0) > 0
        try:
            self.cache.remove(sha_of(name))
        except Busy:
            assert pinned
            return
        assert not pinned
        self.model.files.pop(name, None)
        self.model.owed.discard(name)

    @rule(capacity=st.integers(300, 1_500))
    def open_with_another_capacity(self, capacity: int) -> None:
        fits = self.model.make_room(0, capacity)
        try:
            Cache(self.directory.name, capacity).close()
        except CacheFull:
            assert not fits
            return
        assert fits
        self.model.capacity = capacity

    @precondition(lambda self: not self.open_pins and not self.flying)
    @rule()
    def close_and_open(self) -> None:
        self.cache.close()
        self.cache = Cache(self.directory.name, self.model.capacity)

    @invariant()
    def the_same_files_are_cached(self) -> None:
        expected = {sha_of(name) for name in self.model.files}
        there = {
            name for _, _, names in os.walk(self.cache.directory / "objects") for name in names
        }
        assert there == expected
        assert len(self.cache) == len(expected)
        assert self.cache.used_space() == sum(self.model.files.values()) + self.model.reserved
        assert set(self.cache.owed()) == {sha_of(name) for name in self.model.owed}

    def teardown(self) -> None:
        for _, stack in self.open_pins:
            stack.close()
        problems = list(self.cache.check())
        self.cache.close()
        self.directory.cleanup()
        assert problems == []


Machine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTheCacheEvictsExactlyWhatTheModelEvicts = Machine.TestCase
