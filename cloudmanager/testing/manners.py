"""What a host promises as a whole: names, errors, secrets, threads."""

from __future__ import annotations

import random
import re
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from cloudmanager.errors import CloudManagerError, HostError, ObjectNotFound, Unsupported
from cloudmanager.hosts.base import Host
from cloudmanager.hosts.disposition import filename_of
from cloudmanager.source import BytesSource
from cloudmanager.testing.arrangement import (
    Arrangement,
    foreign_locations,
    needs,
    noise,
    sha256_of,
)

__all__ = ["Manners", "Sharing", "Unreachable"]

HOUR = timedelta(hours=1)


class Manners(Arrangement):
    def test_it_can_do_what_it_was_declared_to_do(self, host: Host) -> None:
        assert host.capabilities == self.capabilities

    def test_check_lets_a_working_host_pass(self, host: Host) -> None:
        host.check()

    def test_its_name_is_safe_to_log(self, host: Host) -> None:
        assert host.name.isprintable()
        self.is_clean(host.name)
        assert not re.search(r"//[^/]*@", host.name)

    def test_its_repr_names_it(self, host: Host) -> None:
        assert host.name in repr(host)
        self.is_clean(repr(host))

    @needs("secrets")
    def test_it_shows_no_secret(self, host: Host) -> None:
        shown = [repr(host), str(host), host.name, host.location("6f/x")]
        shown += [repr(value) for value in getattr(host, "__dict__", {}).values()]
        location = self.absent(host, "6f/never")
        for call in (lambda: host.stat(location), lambda: list(host.get(location))):
            with pytest.raises(HostError) as caught:
                call()
            shown += [str(caught.value), repr(caught.value)]
        for secret in self.secrets:
            assert not [each for each in shown if secret in each]

    def test_it_may_be_closed_twice(self, host: Host) -> None:
        self.arrange(host, "6f/object", b"x")
        host.close()
        host.close()

    def test_a_location_is_a_url_of_the_host(self, host: Host) -> None:
        keys = [*self.keys, "6f/object"]
        locations = [host.location(key) for key in keys]
        assert len(set(locations)) == len(keys)
        for location in locations:
            assert re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location)
            assert location.isascii()
            assert location.isprintable()
            assert host.owns(location)

    def test_what_it_holds_it_owns(self, host: Host) -> None:
        location = self.arrange(host, "6f/object", b"x")
        assert host.owns(location)
        assert host.stat(location).location == location

    def test_it_owns_no_location_of_others(self, host: Host) -> None:
        assert [each for each in foreign_locations(host) if host.owns(each)] == []

    def test_a_location_of_others_is_refused(self, host: Host) -> None:
        # The first is no URL at all, the last one is of a neighbour.
        for location in foreign_locations(host)[1:]:
            for call in (
                lambda location=location: host.stat(location),
                lambda location=location: list(host.get(location)),
            ):
                with pytest.raises(HostError):
                    call()
            if host.capabilities.delete:
                with pytest.raises(HostError):
                    host.delete([location])

    @needs("no_put")
    def test_putting_is_unsupported(self, host: Host) -> None:
        self.fails(
            host,
            "put",
            None,
            lambda: host.put("6f/object", BytesSource(b"x"), sha256=sha256_of(b"x")),
            Unsupported,
        )

    @needs("no_delete")
    def test_deleting_is_unsupported(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        self.fails(host, "delete", None, lambda: host.delete([location]), Unsupported)

    @needs("no_signed_urls")
    def test_signed_links_are_unsupported(self, host: Host) -> None:
        location = self.absent(host, "6f/never")
        self.fails(
            host,
            "signed_url",
            None,
            lambda: host.signed_url(location, expires=HOUR),
            Unsupported,
        )

    @needs("signed_urls", "put")
    def test_anybody_can_follow_a_signed_link(self, host: Host) -> None:
        data = noise(10_000)
        location = self.put(host, "6f/object", data, filename="stored.txt").location
        name = 'grüße "1".txt'
        with urllib.request.urlopen(
            host.signed_url(location, expires=HOUR, filename=name), timeout=self.patience
        ) as answer:
            assert sha256_of(answer.read()) == sha256_of(data)
            assert filename_of(answer.headers["Content-Disposition"]) == name


class Unreachable(Arrangement):
    @needs("unreachable")
    def test_an_unreachable_host_fails_clean(self) -> None:
        host = self.open_unreachable()
        location = host.location("6f/object")
        can = host.capabilities
        self.fails(host, "stat", location, lambda: host.stat(location))
        self.fails(host, "get", location, lambda: list(host.get(location)))
        self.fails(host, "get", location, lambda: host.read(location, limit=10))
        with pytest.raises(HostError):
            host.check()
        if can.range_read:
            self.fails(host, "get", location, lambda: list(host.get(location, offset=1)))
        if can.put:
            with pytest.raises(HostError) as caught:
                host.put("6f/object", BytesSource(b"x"), sha256=sha256_of(b"x"))
            assert caught.value.host == host.name
        if can.delete:
            with pytest.raises(HostError):
                host.delete([location])
        host.close()

    @needs("unreachable", "list")
    def test_a_listing_that_fails_is_never_an_empty_one(self) -> None:
        host = self.open_unreachable()
        for prefix, after in (("", ""), ("", "6f/x"), ("6f", "")):
            with pytest.raises(HostError) as caught:
                list(host.list(prefix, after=after))
            assert caught.value.host == host.name
        host.close()

    @needs("unreachable")
    def test_an_unreachable_host_does_not_say_that_an_object_is_missing(self) -> None:
        host = self.open_unreachable()
        location = host.location("6f/object")
        for call in (lambda: host.stat(location), lambda: list(host.get(location))):
            with pytest.raises(HostError) as caught:
                call()
            assert not isinstance(caught.value, ObjectNotFound)
        host.close()

    @needs("unreachable")
    def test_names_and_locations_need_no_server(self) -> None:
        host = self.open_unreachable()
        assert host.owns(host.location("6f/object"))
        assert not host.owns("gopher-of-nobody://elsewhere.invalid/6f/x")
        assert repr(host)
        host.close()

    @needs("unreachable")
    def test_what_it_lacks_is_unsupported_before_any_io(self) -> None:
        host = self.open_unreachable()
        location = host.location("6f/object")
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: host.put("k", BytesSource(b""), sha256=sha256_of(b"")),
            "list": lambda: list(host.list()),
            "delete": lambda: host.delete([location]),
            "range_read": lambda: list(host.get(location, offset=1)),
            "signed_urls": lambda: host.signed_url(location, expires=HOUR),
        }
        for capability, call in calls.items():
            if not getattr(host.capabilities, capability):
                with pytest.raises(Unsupported):
                    call()
        host.close()


class Sharing(Arrangement):
    def test_many_threads_read_one_object(self, host: Host) -> None:
        data = noise(self.large)
        location = self.arrange(host, "6f/object", data)
        with ThreadPoolExecutor(6) as pool:
            found = pool.map(lambda _: sha256_of(self.bytes_of(host, location)), range(12))
            assert set(found) == {sha256_of(data)}

    @needs("put")
    def test_many_threads_put_and_read_the_same_objects(self, host: Host) -> None:
        """Ends in right bytes or a clean error: as an object may be gone, but never be wrong."""
        data = {f"6f/{n}": noise(30_000 + n, n) for n in range(5)}
        locations = {key: self.put(host, key, each).location for key, each in data.items()}

        def work(seed: int) -> list[str]:
            rng = random.Random(seed)
            wrong: list[str] = []
            for _ in range(15):
                key = rng.choice(sorted(data))
                try:
                    wrong += self._one_call(host, rng, key, data[key], locations[key])
                except ObjectNotFound as exc:
                    if not host.capabilities.delete:
                        wrong.append(str(exc))
                except HostError as exc:
                    # A listing that changes under way may be refused, never be wrong.
                    if not exc.retryable and exc.operation != "list":
                        wrong.append(f"{type(exc).__name__}: {exc}")
                except CloudManagerError as exc:
                    wrong.append(f"{type(exc).__name__}: {exc}")
            return wrong

        with ThreadPoolExecutor(6) as pool:
            results = [pool.submit(work, seed) for seed in range(6)]
            wrong = [each for result in results for each in result.result()]
        assert wrong == []
        for key, each in data.items():
            assert self.bytes_of(host, self.put(host, key, each).location) == each

    def _one_call(
        self, host: Host, rng: random.Random, key: str, data: bytes, location: str
    ) -> list[str]:
        """What was wrong about the answer to one call, if anything was."""
        can = host.capabilities
        call = rng.choice(["put", "put", "get", "get", "stat", "range", "list", "delete"])
        if call == "put":
            found: object = self.put(host, key, data).size
            wanted: object = len(data)
        elif call == "stat":
            found, wanted = host.stat(location).size, len(data)
        elif call == "range" and can.range_read:
            at = rng.randrange(len(data))
            found = sha256_of(self.bytes_of(host, location, offset=at, length=500))
            wanted = sha256_of(data[at : at + 500])
        elif call == "list" and can.list:
            keys = [info.key for info in host.list()]
            found, wanted = keys, sorted(set(keys))
        elif call == "delete" and can.delete:
            host.delete([location])
            return []
        else:
            found, wanted = sha256_of(self.bytes_of(host, location)), sha256_of(data)
        return [] if found == wanted else [f"{call} of {key}: {found} instead of {wanted}"]
