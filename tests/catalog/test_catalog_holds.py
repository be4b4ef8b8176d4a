"""Holds: shared ones for uploads, exclusive ones for removal, alive as long as their holder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine, text

from cloudmanager.catalog import Catalog
from cloudmanager.catalog import holds as holds_module
from cloudmanager.errors import Busy, CatalogUnavailable

HOLDER = """
import sys
from cloudmanager.catalog import Catalog
catalog = Catalog.open(sys.argv[1])
kind, hashes = sys.argv[2], sys.argv[3:]
with catalog.sharing(hashes) if kind == "sharing" else catalog.exclusively(hashes[0]):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(database) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that holds hashes until it gets a line; it lives on until the next."""
    started: list[subprocess.Popen[str]] = []

    def start(kind: str, *hashes: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, database, kind, *hashes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> str:
    """Let the holder go on; what it says then."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def is_free(catalog: Catalog, sha256: str) -> bool:
    """Whether nobody holds the hash in any way."""
    try:
        with catalog.exclusively(sha256, wait=0.05):
            return True
    except Busy:
        return False


PROBE = """
import sys
from cloudmanager.catalog import Catalog
from cloudmanager.errors import Busy
try:
    with Catalog.open(sys.argv[1]) as catalog, catalog.exclusively(sys.argv[2], wait=0.1):
        print("had it")
except Busy:
    print("busy")
"""


def is_refused_elsewhere(database: str, sha256: str) -> bool:
    """Whether another process cannot have the hash for itself."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, database, sha256], capture_output=True, text=True, check=True
    )
    return {"had it\n": False, "busy\n": True}[done.stdout]


@pytest.fixture
def impatient(monkeypatch):
    """Shared holds give up soon, too."""
    monkeypatch.setattr("cloudmanager.catalog.queries.WAIT", 0.1)


def test_any_number_share_and_an_exclusive_hold_waits_for_all_of_them(catalog, database, sha):
    with Catalog.open(database) as other, catalog.sharing([sha(1), sha(2)]):
        with other.sharing([sha(2), sha(3)]), catalog.sharing([sha(2)]):
            assert not is_free(catalog, sha(2))
        assert not is_free(other, sha(2))
        assert is_free(other, sha(3))
    assert is_free(catalog, sha(1))
    assert is_free(catalog, sha(2))


@pytest.mark.usefixtures("impatient")
def test_an_exclusive_hold_keeps_everybody_else_out(catalog, database, sha):
    with Catalog.open(database) as other, catalog.exclusively(sha(1)):
        for somebody in (catalog, other):
            assert not is_free(somebody, sha(1))
            with pytest.raises(Busy, match="try again"), somebody.sharing([sha(0), sha(1)]):
                pass
            with somebody.sharing([sha(0), sha(2)]):
                pass
    assert is_free(catalog, sha(1))
    assert is_free(catalog, sha(0))


@pytest.mark.usefixtures("impatient")
def test_a_batch_that_was_not_to_be_had_whole_is_let_go_whole(catalog, sha):
    batch = [sha(n) for n in range(64)]
    with catalog.exclusively(max(batch)), pytest.raises(Busy), catalog.sharing(batch):
        pass
    assert all(is_free(catalog, value) for value in [*batch[:5], max(batch), min(batch)])


def test_busy_is_worth_another_try_and_names_the_file(catalog, sha):
    with (
        catalog.sharing([sha(1)]),
        pytest.raises(Busy, match=sha(1)[:16]) as caught,
        catalog.exclusively(sha(1), wait=0.05),
    ):
        pass
    assert caught.value.retryable


def test_an_empty_batch_and_a_batch_with_doubles_can_be_held(catalog, sha):
    with catalog.sharing([]), catalog.sharing([sha(1), sha(1)]):
        assert not is_free(catalog, sha(1))
    assert is_free(catalog, sha(1))


def test_a_hold_ends_when_its_block_fails(catalog, sha):
    with pytest.raises(RuntimeError, match="in the block"), catalog.sharing([sha(1)]):
        raise RuntimeError("in the block")
    assert is_free(catalog, sha(1))


def test_who_waits_gets_the_hold_when_it_is_let_go(catalog, sha):
    held, order = threading.Event(), []

    def remove() -> None:
        held.wait()
        with catalog.exclusively(sha(1)):
            order.append("removal")

    thread = threading.Thread(target=remove)
    thread.start()
    with catalog.sharing([sha(1)]):
        held.set()
        thread.join(0.1)
        order.append("upload")
    thread.join()
    assert order == ["upload", "removal"]


def test_another_process_is_kept_out_until_the_hold_ends(catalog, holder, sha):
    process = holder("exclusively", sha(1))
    assert not is_free(catalog, sha(1))
    assert is_free(catalog, sha(2))
    assert tell(process) == "released\n"
    assert is_free(catalog, sha(1))


def test_processes_share_with_each_other(catalog, holder, sha):
    process = holder("sharing", sha(1), sha(2))
    with catalog.sharing([sha(2), sha(3)]):
        assert tell(process) == "released\n"
        assert not is_free(catalog, sha(2))
    assert is_free(catalog, sha(2))


@pytest.mark.parametrize("kind", ["sharing", "exclusively"])
def test_a_killed_holder_lets_go(catalog, holder, sha, kind):
    process = holder(kind, sha(1))
    assert not is_free(catalog, sha(1))
    process.kill()
    process.wait()
    with catalog.exclusively(sha(1)):
        pass


@pytest.mark.parametrize("kind", ["sharing", "exclusively"])
def test_a_stopped_holder_keeps_what_it_holds(catalog, holder, sha, kind):
    process = holder(kind, sha(1))
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Busy), catalog.exclusively(sha(1), wait=1.0):
            pass
    finally:
        process.send_signal(signal.SIGCONT)
    assert tell(process) == "released\n"
    assert is_free(catalog, sha(1))


def test_closing_another_catalog_of_the_process_lets_nothing_go(catalog, database, holder, sha):
    with catalog.exclusively(sha(1)):
        with Catalog.open(database) as other, other.exclusively(sha(2)):
            pass
        process = holder("exclusively", sha(2))
        assert is_refused_elsewhere(database, sha(1))
        assert tell(process) == "released\n"


def test_batches_that_overlap_in_any_order_never_wait_for_each_other(catalog, database, sha):
    hashes = [sha(n) for n in range(12)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Catalog.open(database) as mine:
                for turn in range(15):
                    batch = hashes[turn % 5 :: 1 + number % 3]
                    with mine.sharing(batch[:: -1 if number % 2 else 1]):
                        pass
                    with mine.exclusively(hashes[(turn + number) % 12]):
                        pass
        except BaseException as exc:  # noqa: BLE001 - a thread's failure belongs to the test
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(is_free(catalog, value) for value in hashes)


def test_more_holders_than_connections_for_queries_can_all_work(catalog, file, sha):
    with ExitStack() as stack:
        for number in range(25):
            stack.enter_context(catalog.exclusively(sha(number)))
        catalog.record([file(1)], [])
        assert catalog.exists(sha(1))


# --- byte ranges --------------------------------------------------------------------------


def test_a_forked_child_holds_nothing_and_lets_nothing_go(tmp_path, sha):
    with Catalog.open(tmp_path / "c.sqlite3") as catalog:
        with catalog.exclusively(sha(1)):
            child = os.fork()
            if child == 0:
                os._exit(0 if not is_free(catalog, sha(1)) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert is_refused_elsewhere(catalog.safe_url, sha(1))
        assert is_free(catalog, sha(1))


def test_what_a_forked_child_shares_with_its_parent_outlives_the_parents_hold(tmp_path, sha):
    held = os.pipe()
    with Catalog.open(tmp_path / "c.sqlite3") as catalog:
        with catalog.sharing([sha(1)]):
            child = os.fork()
            if child == 0:
                with catalog.sharing([sha(1)]):
                    os.write(held[1], b"!")
                    signal.pause()
                os._exit(0)
            os.read(held[0], 1)
        free = is_free(catalog, sha(1))
        # Before anything is asserted, or a failure would leave the child behind.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not free
        assert is_free(catalog, sha(1))
    for descriptor in held:
        os.close(descriptor)


def test_links_to_one_catalog_share_its_holds(tmp_path, sha):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        Catalog.open(tmp_path / "real" / "c.sqlite3") as catalog,
        Catalog.open(tmp_path / "link" / "c.sqlite3") as other,
        catalog.exclusively(sha(1)),
    ):
        assert not is_free(other, sha(1))


def test_a_catalog_that_was_replaced_is_locked_where_others_see_it(tmp_path, sha):
    folder = tmp_path / "pool"
    folder.mkdir()
    with Catalog.open(folder / "c.sqlite3") as catalog, catalog.sharing([sha(1)]):
        pass
    shutil.rmtree(folder)
    folder.mkdir()
    with Catalog.open(folder / "c.sqlite3") as catalog, catalog.exclusively(sha(1)):
        assert is_refused_elsewhere(str(folder / "c.sqlite3"), sha(1))


def test_a_catalog_in_memory_has_holds_of_its_own(sha):
    with Catalog.open(":memory:") as one, Catalog.open(":memory:") as two:
        with one.exclusively(sha(1)):
            assert not is_free(one, sha(1))
            assert is_free(two, sha(1))
        assert is_free(one, sha(1))


def test_a_lock_file_that_cannot_be_opened_is_an_error_of_ours(tmp_path, sha):
    with Catalog.open(tmp_path / "c.sqlite3") as catalog:
        (tmp_path / "c.sqlite3-holds").mkdir()
        with pytest.raises(CatalogUnavailable, match="-holds"), catalog.sharing([sha(1)]):
            pass


# --- PostgreSQL ---------------------------------------------------------------------------


@pytest.fixture
def server(postgres) -> Iterator[tuple[Catalog, Callable[[str], list[tuple[object, ...]]]]]:
    """A catalog on PostgreSQL, and a way to ask its server behind the catalog's back."""
    from cloudmanager.catalog import set_up

    url = postgres.make_database()
    set_up(url)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")

    def ask(query: str) -> list[tuple[object, ...]]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    with Catalog.open(url) as catalog:
        yield catalog, ask
    engine.dispose()


END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
LOCKS = (
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
    "WHERE locktype = 'advisory' AND datname = current_database()"
)


def test_a_hold_that_was_lost_with_its_connection_is_told_on_leaving(server, sha):
    catalog, ask = server
    with pytest.raises(CatalogUnavailable, match="lost"), catalog.exclusively(sha(1)):
        assert ask(END_ALL)
    assert is_free(catalog, sha(1))


def test_a_failure_in_the_block_is_not_hidden_by_the_lost_hold(server, sha):
    catalog, ask = server
    with pytest.raises(RuntimeError, match="in the block"), catalog.exclusively(sha(1)):
        assert ask(END_ALL)
        raise RuntimeError("in the block")
    assert is_free(catalog, sha(1))


@pytest.mark.usefixtures("impatient")
def test_no_lock_stays_on_the_server_after_success_failure_or_time_out(server, sha):
    catalog, ask = server
    batch = [sha(n) for n in range(20)]
    with catalog.sharing(batch):
        assert ask(LOCKS) == [(20,)]
        with pytest.raises(RuntimeError), catalog.sharing(batch):
            raise RuntimeError
        with pytest.raises(Busy), catalog.exclusively(batch[0], wait=0.05):
            pass
    with catalog.exclusively(max(batch)), pytest.raises(Busy), catalog.sharing(batch):
        pass
    assert ask(LOCKS) == [(0,)]


def test_the_time_limit_covers_the_whole_batch_and_not_each_file(server, sha, monkeypatch):
    catalog, ask = server
    low, high = sorted([sha(1), sha(2)], key=lambda value: holds_module._signed(value[:16]))
    low_held, low_wanted = threading.Event(), threading.Event()
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
        "WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )

    def let_go_late() -> None:
        with catalog.exclusively(low):
            low_held.set()
            while ask(waiting) != [(1,)]:
                low_wanted.wait(0.01)
            ask("SELECT pg_sleep(0.6)")

    monkeypatch.setattr("cloudmanager.catalog.queries.WAIT", 1.0)
    thread = threading.Thread(target=let_go_late)
    with catalog.exclusively(high):
        thread.start()
        low_held.wait()
        with pytest.raises(Busy) as caught, catalog.sharing([low, high]):
            pass
        thread.join()
    # The server's clock, not ours: what ended the wait was the limit on the statement.
    assert "statement timeout" in str(caught.value.__cause__)


def test_hashes_on_both_sides_of_the_signed_range_have_keys_of_their_own():
    digits = ["0" * 16, "7" + "f" * 15, "8" + "0" * 15, "f" * 16]
    assert [holds_module._signed(value) for value in digits] == [0, 2**63 - 1, -(2**63), -1]


NOT_OURS = """
import os, sys, time
from cloudmanager.catalog.holds import FileHolds
from cloudmanager.errors import CatalogUnavailable
if os.getuid() == 0:
    os.setuid(65534)
try:
    with FileHolds(sys.argv[1]).hold([64 * "a"], exclusive=False, wait=60):
        print("held")
except CatalogUnavailable as exc:
    print(exc)
"""


def test_a_lock_file_of_somebody_else_is_said_at_once_and_not_waited_for(tmp_path):
    path = tmp_path / "catalog-holds"
    path.touch(mode=0o400)
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", NOT_OURS, str(path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert "cannot lock" in done.stdout
    assert "ermission denied" in done.stdout
