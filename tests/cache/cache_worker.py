"""A process that works on a cache, for tests that need several or that kill one.

    cache_worker.py WORK DIRECTORY CAPACITY SEED THREADS SECONDS FILES SIZE

Prints one short line per event, each in a single write that a pipe takes whole, so that what
was printed before a SIGKILL was true.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
import traceback

from cloudmanager.cache import Cache, Reservation
from cloudmanager.errors import Busy, CacheFull


def data_of(number: int, size: int) -> bytes:
    """The content of file `number`: up to `size` bytes, the same in every process."""
    source = random.Random(number)
    return source.randbytes(source.randint(1, size))


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Worker:
    def __init__(self, arguments: list[str]) -> None:
        self.directory = arguments[0]
        capacity, self.seed, self.threads = map(int, arguments[1:4])
        self.seconds = float(arguments[4])
        self.files, self.size = map(int, arguments[5:7])
        self.cache = Cache(self.directory, capacity)
        self.end = time.monotonic() + self.seconds
        self.wrong = 0

    def fill(self, number: int, reservation: Reservation) -> None:
        data = data_of(number, self.size)
        with reservation.open() as file:
            for start in range(0, len(data), 65536):
                file.write(data[start : start + 65536])

    def write(self, numbers: list[int], *, owed: bool) -> None:
        data = [data_of(number, self.size) for number in numbers]
        reservations = self.cache.reserve_many([len(each) for each in data])
        for reservation, number in zip(reservations, numbers, strict=True):
            self.fill(number, reservation)
        hashes = [hashlib.sha256(each).hexdigest() for each in data]
        self.cache.commit_many(list(zip(reservations, hashes, strict=True)), owed=owed)
        if owed:
            for digest in hashes:
                say("owed", digest)

    def read(self, number: int, *, pin: bool) -> None:
        data = data_of(number, self.size)
        digest = hashlib.sha256(data).hexdigest()
        path = self.cache.fetch(digest, len(data), lambda r: self.fill(number, r))
        if pin:
            with self.cache.pinned(digest) as held:
                if held is not None and held.read_bytes() != data:
                    self.wrong += 1
        else:
            try:
                read = path.read_bytes()
            except FileNotFoundError:
                return  # evicted meanwhile: a path is valid until then
            if read != data:
                self.wrong += 1

    def settle_some(self, chance: random.Random) -> None:
        hashes = [each for each in self.cache.owed() if chance.random() < 0.7]
        for digest in hashes:
            say("settling", digest)
        self.cache.settle(*hashes)

    def step(self, chance: random.Random) -> None:
        number = chance.randrange(self.files)
        what = chance.random()
        if what < 0.70:
            self.read(number, pin=what < 0.35)
        elif what < 0.80:
            self.write([chance.randrange(self.files) for _ in range(3)], owed=False)
        elif what < 0.86:
            self.write([number], owed=True)
        elif what < 0.89:
            data = data_of(number, self.size)
            digest = hashlib.sha256(data).hexdigest()
            if self.cache.owe(digest):
                say("owed", digest)
        elif what < 0.95:
            self.settle_some(chance)
        elif what < 0.98:
            with self.cache.reserve(self.size) as reservation:
                self.fill(number, reservation)
                reservation.resize(2 * self.size)
        else:
            digest = hashlib.sha256(data_of(number, self.size)).hexdigest()
            say("settling", digest)
            self.cache.remove(digest)

    def loop(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        done = 0
        while time.monotonic() < self.end:
            try:
                self.step(chance)
            except CacheFull:
                self.settle_some(chance)
            except Busy:
                continue
            except Exception:  # noqa: BLE001 - whatever it is, the test has to see it
                traceback.print_exc()
                self.wrong += 1
                return
            done += 1
        say("done", done)

    def hammer(self) -> None:
        threads = [threading.Thread(target=self.loop, args=(i,)) for i in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.cache.close()
        say("wrong", self.wrong)

    def fetch(self) -> None:
        """Fetch every file once with `threads` threads; say each fill."""

        def fill(number: int, reservation: Reservation) -> None:
            say("fill", number)
            time.sleep(0.01)
            self.fill(number, reservation)

        def work() -> None:
            for number in range(self.files):
                data = data_of(number, self.size)
                digest = hashlib.sha256(data).hexdigest()
                path = self.cache.fetch(digest, len(data), lambda r, n=number: fill(n, r))
                if path.read_bytes() != data:
                    say("wrong", 1)

        say("ready")
        sys.stdin.readline()
        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.cache.close()

    def stall(self) -> None:
        """Begin to fetch file 0, write half of it, and wait to be killed."""

        def fill(reservation: Reservation) -> None:
            data = data_of(0, self.size)
            reservation.path.write_bytes(data[: len(data) // 2])
            say("stalled")
            sys.stdin.readline()

        data = data_of(0, self.size)
        self.cache.fetch(hashlib.sha256(data).hexdigest(), len(data), fill)


if __name__ == "__main__":
    getattr(Worker(sys.argv[2:]), sys.argv[1])()
