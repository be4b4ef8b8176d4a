"""Files to an S3 server and back, against programs that only copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Bench, Case
from benchmarks.data import require_same, require_stored
from benchmarks.measure import Goal, Missing, Sample, Turn
from benchmarks.peers import Aws, RClone, S5cmd
from benchmarks.pool import Pool, s3_host
from benchmarks.servers import S3Server, rclone_s3

__all__ = ["CASES"]

CLI = "cloudmanager upload"
CLI_DOWN = "cloudmanager download"
LIBRARY = "cloudmanager, library"
_ROOM = 8 * 1024**3

Start = Callable[[S3Server, Path], tuple[Sequence[str], Mapping[str, str]]]
"""Makes command line and environment of one upload, given the server and a fresh folder."""


def _many(source: Path) -> bool:
    return any(each.is_dir() for each in source.iterdir())


def _uploads(source: Path) -> dict[str, Start]:
    """The project's two ways in."""

    def pool(server: S3Server, fresh: Path) -> Pool:
        return Pool.make(fresh, [s3_host(server)], capacity=_ROOM)

    return {
        CLI: lambda server, fresh: (pool(server, fresh).upload(source), {}),
        LIBRARY: lambda server, fresh: (pool(server, fresh).library("upload", source), {}),
    }


def _up(bench: Bench, source: Path, label: str, start: Start) -> Turn:
    """A turn with a server of its own, so that every contender meets an empty one."""

    def run() -> dict[str, Sample]:
        with (
            bench.fresh(keep=_many(source)) as fresh,
            bench.server_folder() as stored,
            rclone_s3(stored) as server,
        ):
            argv, env = start(server, fresh)
            sample = bench.measure(argv, env, warm=source)
            require_stored(source, server.directory)
        return {label: sample}

    return Turn(label, run)


@contextmanager
def small_up(bench: Bench) -> Iterator[Sequence[Turn]]:
    s5cmd, rclone, source = S5cmd(), RClone(), bench.small
    many = ("--transfers", "16", "--checkers", "16")
    starts = {
        **_uploads(source),
        "s5cmd cp": lambda server, _: (s5cmd.up(server, source, "s5cmd"), s5cmd.env(server)),
        "rclone copy": lambda server, _: (rclone.up(source, "rclone"), rclone.env(server)),
        "rclone copy, 16 transfers": lambda server, _: (
            rclone.up(source, "rclone", *many),
            rclone.env(server),
        ),
    }
    yield [_up(bench, source, label, start) for label, start in starts.items()]


@contextmanager
def large_up(bench: Bench) -> Iterator[Sequence[Turn]]:
    s5cmd, source = S5cmd(), bench.big
    file = next(source.iterdir())
    starts = {
        **_uploads(source),
        "s5cmd cp": lambda server, _: (s5cmd.up(server, file, "s5cmd"), s5cmd.env(server)),
    }
    try:
        aws = Aws(bench.cache, install=not bench.quick)
    except Missing as exc:
        bench.notes.append(f"without the AWS CLI: {exc}")
    else:
        starts["aws s3 cp"] = lambda server, _: (aws.up(server, file, "aws"), aws.env(server))
    yield [_up(bench, source, label, start) for label, start in starts.items()]


def _down(bench: Bench, source: Path) -> Iterator[Sequence[Turn]]:
    """Everybody downloads from one server what was uploaded to it in his own layout."""
    s5cmd = S5cmd()
    with (
        bench.fresh(keep=_many(source)) as fresh,
        bench.server_folder() as on_server,
        rclone_s3(on_server) as server,
    ):
        stored = Pool.make(fresh, [s3_host(server)], capacity=_ROOM)
        manifest = fresh / "manifest"
        bench.measure(stored.upload(source, manifest=manifest))
        bench.measure(s5cmd.up(server, source, "s5cmd"), s5cmd.env(server))

        def turn(label: str, start: Callable[[Pool, Path], Sequence[str]], objects: str) -> Turn:
            def run() -> dict[str, Sample]:
                with bench.fresh(keep=_many(source)) as own:
                    # The catalog knows the files, the cache is new and empty.
                    pool = Pool.make(
                        own, [s3_host(server)], capacity=_ROOM, database=stored.database
                    )
                    target = own / "target"
                    target.mkdir()
                    warm = server.directory / objects
                    sample = bench.measure(start(pool, target), s5cmd.env(server), warm=warm)
                    require_same(source, target)
                return {label: sample}

            return Turn(label, run)

        yield [
            turn(CLI_DOWN, lambda pool, target: pool.download(manifest, target), "pool"),
            turn(LIBRARY, lambda pool, to: pool.library("download", manifest, to), "pool"),
            turn("s5cmd cp", lambda _, target: s5cmd.down(server, "s5cmd", target), "s5cmd"),
        ]


@contextmanager
def small_down(bench: Bench) -> Iterator[Sequence[Turn]]:
    yield from _down(bench, bench.small)


@contextmanager
def large_down(bench: Bench) -> Iterator[Sequence[Turn]]:
    yield from _down(bench, bench.big)


CASES = (
    Case(
        "small-up",
        (
            Goal("small files into the pool, against s5cmd cp", CLI, 1.0, ("s5cmd cp",)),
            Goal(
                "small files into the pool, against rclone copy",
                CLI,
                0.6,
                ("rclone copy", "rclone copy, 16 transfers"),
            ),
        ),
        small_up,
    ),
    Case(
        "large-up",
        (
            Goal(
                "a large file up, hashed and cached, against the faster of s5cmd and aws s3 cp",
                CLI,
                1.0,
                ("s5cmd cp", "aws s3 cp"),
            ),
        ),
        large_up,
    ),
    Case(
        "small-down",
        (Goal("small files down, verified, against s5cmd cp", CLI_DOWN, 1.0, ("s5cmd cp",)),),
        small_down,
    ),
    Case(
        "large-down",
        (Goal("a large file down, verified, against s5cmd cp", CLI_DOWN, 1.0, ("s5cmd cp",)),),
        large_down,
    ),
)
