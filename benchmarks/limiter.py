"""A TCP relay that lets through so many bytes a second: ``python -m benchmarks.limiter``.

It runs as a process of its own, so that its work is not charged to the program that is
measured. It prints its port and ends when its standard input ends.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
import time

__all__ = ["Bucket", "main"]

_BLOCK = 256 * 1024
_BURST = 0.05


class Bucket:
    """Admits `rate` bytes a second in all, for whoever asks. Thread-safe.

    Unused time is saved up for 50 ms only, so that a pause is not followed by a flood.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._due = time.monotonic()

    def take(self, count: int) -> None:
        """Return when `count` more bytes may have passed."""
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - _BURST) + count / self._rate
            wait = self._due - now
        if wait > 0:
            time.sleep(wait)


def _pump(source: socket.socket, target: socket.socket, bucket: Bucket) -> None:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    # Either end may reset the connection at any time: the other end then sees it closed.
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            bucket.take(count)
            target.sendall(view[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _relay(client: socket.socket, upstream: int, up: Bucket, down: Bucket) -> None:
    with client, socket.create_connection(("127.0.0.1", upstream)) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=_pump, args=(server, client, down), daemon=True)
        back.start()
        _pump(client, server, up)
        back.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limiter")
    parser.add_argument("--upstream", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--rate", type=float, required=True, help="bytes a second, each way")
    options = parser.parse_args()
    up, down = Bucket(options.rate), Bucket(options.rate)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(
                target=_relay, args=(client, options.upstream, up, down), daemon=True
            ).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
