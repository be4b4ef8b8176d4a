"""What the tests of the kit stand on: the hooks that a subclass fills in, and what they share."""

from __future__ import annotations

import functools
import hashlib
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar

import pytest

from cloudmanager.errors import CloudManagerError, HostError
from cloudmanager.hosts.base import Host
from cloudmanager.model import Capabilities, Checksum, ObjectInfo
from cloudmanager.source import BytesSource
from cloudmanager.testing.sources import PausedSource

__all__ = ["Arrangement", "foreign_locations", "needs", "noise", "sha256_of"]

F = TypeVar("F", bound=Callable[..., None])
T = TypeVar("T")

_NEEDS = "_cloudmanager_needs"


def needs(*what: str) -> Callable[[F], F]:
    """Mark a test that applies only where a subclass declares all of `what`.

    The names of capabilities, with ``no_`` before them where the test is for hosts without;
    ``unreachable``, ``raw`` and ``arrange`` where the hooks of that name are filled in;
    ``secrets`` and ``filename`` where the attributes say so.
    """

    def mark(function: F) -> F:
        setattr(function, _NEEDS, what)
        return function

    return mark


@functools.lru_cache(maxsize=16)
def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that no compression shortens, the same for the same seed."""
    return random.Random(f"{seed}").randbytes(size)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def foreign_locations(host: Host) -> list[str]:
    """Locations of other places than this host: other schemes, and its own next neighbours."""
    own = host.location("6f/x")
    found = [
        "",
        "6f/x",
        "/6f/x",
        "no location",
        "gopher-of-nobody://elsewhere.invalid/6f/x",
        f"x{own}",
    ]
    if own.endswith("/6f/x"):
        base = own.removesuffix("/6f/x")
        found += [base, f"{base}/", f"{base}-other/6f/x"]
    return found


class _TakenOut:
    """In the place of a test that does not apply. Not callable, so pytest passes it by."""

    def __init__(self, test: Callable[..., None], lacking: Sequence[str]) -> None:
        self.test = test
        self.lacking = tuple(lacking)

    def __repr__(self) -> str:
        return f"<does not apply: needs {', '.join(self.lacking)}>"


class Arrangement:
    """The hooks of `HostConformance`, whose docstring tells about them."""

    capabilities: ClassVar[Capabilities] = Capabilities()
    keys: ClassVar[Sequence[str]] = (
        "6f/6f7bed7be5ddad3af3ba9b5b7bd52c5d8a1cc9cd8ee9fcfa2d4d5c0e2d2f9c11",
        "plain",
        "several/folders/deep",
        "with space and  two",
        "100%",
        "a%2Fb",
        "1+1",
        "~home",
        "ümläut/日本語",
        "\U0001f600",
        "dots.in.it/..three",
        "a=b&c;d,e@f!g$h'i(j)k*l",
    )
    # Where orders differ: a folder against its siblings (``-`` < ``.`` < ``/`` < ``0``), capitals,
    # and UTF-16, for which U+1F600 comes before U+FF5E.
    unordered: ClassVar[Sequence[str]] = (
        *("b/z", "\U0001f600", "a0", "B/x", "\uff5e", "a/b/c", "é"),
        *("a.txt", "a-", "a/z", "b/é", "z", "10", "9"),
    )
    large: ClassVar[int] = 3 * 1024 * 1024
    many: ClassVar[int] = 40
    patience: ClassVar[float] = 60.0
    secrets: ClassVar[Sequence[str]] = ()
    keeps_filename: ClassVar[bool] = False
    chooses_location: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: object) -> None:
        """Take out the tests that do not apply, instead of skipping them in every run."""
        super().__init_subclass__(**arguments)
        for name in [each for each in dir(cls) if each.startswith("test_")]:
            test = getattr(cls, name)
            if isinstance(test, _TakenOut):  # a base class lacked what this one may have
                test = test.test
            lacking = [each for each in getattr(test, _NEEDS, ()) if not cls._has(each)]
            if lacking:
                setattr(cls, name, _TakenOut(test, lacking))
            elif test is not getattr(cls, name):
                setattr(cls, name, test)

    @classmethod
    def _has(cls, what: str) -> bool:
        if what.startswith("no_"):
            return not cls._has(what.removeprefix("no_"))
        hooks = {
            "unreachable": ("open_unreachable",),
            "raw": ("raw_read", "raw_write"),
            "arrange": ("arrange",),
        }
        if what in hooks:
            return all(getattr(cls, h) is not getattr(Arrangement, h) for h in hooks[what])
        if what == "secrets":
            return bool(cls.secrets)
        if what == "filename":
            return cls.keeps_filename
        if what == "told_location":
            return not cls.chooses_location
        return bool(getattr(cls.capabilities, what))

    # -- hooks ---------------------------------------------------------------------------

    def open_host(self) -> Host:
        """A host that is reachable, fresh and empty. The kit closes it."""
        raise NotImplementedError(f"{type(self).__name__} needs open_host() or a fixture `host`")

    def open_unreachable(self) -> Host:
        """A host of this kind whose server (folder, …) is not there. May be left out."""
        raise NotImplementedError

    def arrange(self, host: Host, key: str, data: bytes) -> str:
        """Have an object of these bytes on the host; its location. Needed where `put` is not."""
        return host.put(key, BytesSource(data), sha256=sha256_of(data)).location

    def raw_read(self, host: Host, key: str) -> bytes:
        """The bytes of an object, read past the host. May be left out."""
        raise NotImplementedError

    def raw_write(self, host: Host, key: str, data: bytes) -> None:
        """Write an object past the host, as somebody else would. May be left out."""
        raise NotImplementedError

    def digest(self, kind: str, data: bytes) -> str:
        """The checksum `kind` of whole bytes in lower-case hex; for more kinds than these."""
        if kind == "crc32":
            return f"{zlib.crc32(data):08x}"
        return hashlib.new(kind, data).hexdigest()

    @pytest.fixture
    def host(self) -> Iterator[Host]:
        """The host of a test; override it where a fixture is needed to make one."""
        made = self.open_host()
        yield made
        made.close()

    # -- shared --------------------------------------------------------------------------

    def put(self, host: Host, key: str, data: bytes, filename: str | None = None) -> ObjectInfo:
        return host.put(key, BytesSource(data), sha256=sha256_of(data), filename=filename)

    def bytes_of(
        self, host: Host, location: str, *, offset: int = 0, length: int | None = None
    ) -> bytes:
        return b"".join(host.get(location, offset=offset, length=length))

    def absent(self, host: Host, key: str) -> str:
        """A location of this host where nothing is."""
        return host.location(key)

    def fails(
        self,
        host: Host,
        operation: str,
        location: str | None,
        call: Callable[[], object],
        kind: type[HostError] = HostError,
    ) -> HostError:
        """`call` raises a `HostError` of that kind that says all it should, and no more."""
        with pytest.raises(HostError) as caught:
            call()
        error = caught.value
        assert isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}"
        assert error.host == host.name
        assert error.operation == operation
        if location is not None:
            assert error.location == location
        assert isinstance(error.retryable, bool)
        self.is_clean(str(error))
        return error

    def is_clean(self, message: str) -> None:
        """One line of text without a secret."""
        assert message.strip()
        assert "\n" not in message
        for secret in self.secrets:
            assert secret not in message

    def is_absent(self, host: Host, key: str, location: str) -> None:
        """Nothing is to be seen of an object, whichever way one looks."""
        from cloudmanager.errors import ObjectNotFound

        with pytest.raises(ObjectNotFound):
            host.stat(location)
        with pytest.raises(ObjectNotFound):
            self.bytes_of(host, location)
        if host.capabilities.list:
            assert key not in [info.key for info in host.list()]

    def refused_source(self, call: Callable[[], object]) -> None:
        """`call` raises one of our own errors, whatever the source raised."""
        with pytest.raises(CloudManagerError) as caught:
            call()
        self.is_clean(str(caught.value))

    def proves(self, checksum: Checksum, data: bytes) -> None:
        """The checksum is of these bytes."""
        assert checksum.value == checksum.value.lower()
        kind, _, composite = checksum.kind.partition("-")
        if not composite:
            assert checksum.value == self.digest(kind, data)
            return
        assert checksum.part_size
        parts = range(0, max(len(data), 1), checksum.part_size)
        digests = [self.digest(kind, data[at : at + checksum.part_size]) for at in parts]
        whole = self.digest(kind, b"".join(bytes.fromhex(each) for each in digests))
        assert checksum.value == f"{whole}-{len(parts)}"

    def while_half_is_sent(
        self, host: Host, key: str, data: bytes, look: Callable[[], None]
    ) -> ObjectInfo:
        """Put an object, and call `look` while its source is stuck in the middle."""
        source = PausedSource(data, patience=self.patience)
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(host.put, key, source, sha256=sha256_of(data))
            # A put that ends before it has read all is no reason to wait.
            putting.add_done_callback(lambda _: source.reached.set())
            try:
                assert source.reached.wait(self.patience), "put does not read its source"
                look()
            finally:
                source.resume()
            return putting.result(self.patience)
