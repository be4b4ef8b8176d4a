"""One file to two hosts at once, each behind a line of limited speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.bench import Bench, Case
from benchmarks.measure import Goal, Sample, Turn
from benchmarks.pool import Host, Pool, azure_host, s3_host
from benchmarks.servers import azurite, limiter, rclone_s3

__all__ = ["CASES"]

_LINE = 100e6
"""Bytes a second of each line."""

BOTH, S3, AZURE = "S3 and Azure at once", "S3 alone", "Azure alone"


@contextmanager
def two_hosts(bench: Bench) -> Iterator[Sequence[Turn]]:
    source = bench.big

    def turn(label: str) -> Turn:
        def run() -> dict[str, Sample]:
            with bench.fresh() as fresh, ExitStack() as stack:
                hosts: list[Host] = []
                if label != AZURE:
                    stored = stack.enter_context(bench.server_folder())
                    server = stack.enter_context(rclone_s3(stored))
                    port = stack.enter_context(limiter(server.port, _LINE))
                    hosts.append(s3_host(server, port=port))
                if label != S3:
                    blobs = stack.enter_context(azurite(fresh / "azurite"))
                    port = stack.enter_context(limiter(blobs.port, _LINE))
                    hosts.append(azure_host(blobs, port=port))
                pool = Pool.make(fresh, hosts, capacity=2 * bench.sizes.big)
                return {label: bench.measure(pool.upload(source), warm=source)}

        return Turn(label, run)

    yield [turn(label) for label in (BOTH, S3, AZURE)]


CASES = (
    Case(
        "two-hosts",
        (
            Goal(
                "a large file to S3 and Azure at once, 100 MB/s each, against the slower alone",
                BOTH,
                1.15,
                (S3, AZURE),
                pick=max,
            ),
        ),
        two_hosts,
    ),
)
