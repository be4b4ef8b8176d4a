"""What `list` promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from cloudmanager.errors import HostError, Unsupported
from cloudmanager.hosts.base import Host
from cloudmanager.testing.arrangement import Arrangement, needs

__all__ = ["Listing"]


class Listing(Arrangement):
    @property
    def ordered(self) -> list[str]:
        return sorted(self.unordered, key=str.encode)

    def arrange_all(self, host: Host) -> dict[str, str]:
        return {key: self.arrange(host, key, key.encode()) for key in self.unordered}

    @needs("list")
    def test_an_empty_host_lists_nothing(self, host: Host) -> None:
        assert list(host.list()) == []
        assert list(host.list("6f", after="6f/a")) == []

    @needs("list")
    def test_objects_are_listed_in_the_order_of_their_bytes(self, host: Host) -> None:
        self.arrange_all(host)
        assert [info.key for info in host.list()] == self.ordered

    @needs("list")
    def test_a_listing_tells_what_stat_tells(self, host: Host) -> None:
        locations = self.arrange_all(host)
        for info in host.list():
            found = host.stat(info.location)
            assert info.location == locations[info.key]
            assert (info.key, info.size) == (found.key, found.size)
            assert info.size == len(info.key.encode())
            if info.modified is not None and found.modified is not None:
                # HTTP's Last-Modified has whole seconds.
                assert abs(info.modified - found.modified) < timedelta(seconds=1)

    @needs("list")
    def test_a_prefix_is_that_of_the_whole_key(self, host: Host) -> None:
        self.arrange_all(host)
        for prefix in ("a", "a/", "a/b", "a/b/c", "b", "B", "1", "é", "b/é", "A", "a/b/c/", "%"):
            wanted = [key for key in self.ordered if key.startswith(prefix)]
            assert [info.key for info in host.list(prefix)] == wanted, prefix

    @needs("list")
    def test_a_listing_resumes_after_every_key(self, host: Host) -> None:
        self.arrange_all(host)
        for number, key in enumerate(self.ordered):
            assert [info.key for info in host.list(after=key)] == self.ordered[number + 1 :], key

    @needs("list")
    def test_a_listing_resumes_after_a_key_that_is_not_there(self, host: Host) -> None:
        self.arrange_all(host)
        for after in ("a", "a/", "a/b", "a/b/cc", "0", "zz", "C", "a.tx", "\uff60", "\U0001f610"):
            wanted = [key for key in self.ordered if key.encode() > after.encode()]
            assert [info.key for info in host.list(after=after)] == wanted, after

    @needs("list")
    def test_a_listing_below_a_prefix_resumes(self, host: Host) -> None:
        self.arrange_all(host)
        for prefix, after in (("a", "a."), ("a/", "a/b/c"), ("b", "a"), ("a", "b"), ("a/", "a")):
            wanted = [
                key
                for key in self.ordered
                if key.startswith(prefix) and key.encode() > after.encode()
            ]
            found = [info.key for info in host.list(prefix, after=after)]
            assert found == wanted, (prefix, after)

    @needs("list")
    def test_a_long_listing_has_each_object_once(self, host: Host) -> None:
        keys = [f"{n % 16:02x}/{n:05d}" for n in range(self.many)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.arrange(host, key, b"x"), keys))
        keys.sort()
        assert [info.key for info in host.list()] == keys
        for start in (0, self.many // 2, self.many - 2, self.many - 1):
            assert [info.key for info in host.list(after=keys[start])] == keys[start + 1 :]

    @needs("list")
    def test_two_listings_do_not_disturb_each_other(self, host: Host) -> None:
        self.arrange_all(host)
        one, two = host.list(), host.list()
        pairs = [(next(one).key, next(two).key) for _ in self.ordered]
        assert pairs == [(key, key) for key in self.ordered]
        assert (next(one, None), next(two, None)) == (None, None)

    @needs("list", "delete")
    def test_what_was_deleted_is_not_listed(self, host: Host) -> None:
        locations = self.arrange_all(host)
        host.delete([locations["a/z"], locations["9"]])
        wanted = [key for key in self.ordered if key not in ("a/z", "9")]
        assert [info.key for info in host.list()] == wanted

    @needs("list", "delete")
    def test_a_listing_while_objects_vanish_ends_clean(self, host: Host) -> None:
        locations = self.arrange_all(host)
        listing = host.list()
        found = [next(listing).key]
        host.delete(locations.values())
        error: HostError | None = None
        try:
            for info in listing:
                found.append(info.key)
        except HostError as exc:
            error = exc
        if error is not None:
            assert error.operation == "list"
            self.is_clean(str(error))
        assert found == [key for key in self.ordered if key in found]

    @needs("no_list")
    def test_listing_is_unsupported(self, host: Host) -> None:
        self.fails(host, "list", None, lambda: list(host.list()), Unsupported)
