"""Many writers at once lose nothing; lost connections and deadlocks are survived."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event, text

from cloudmanager.catalog import Catalog, set_up
from cloudmanager.errors import CatalogUnavailable

WRITER = """
import hashlib, sys, threading
from cloudmanager.catalog import Catalog
from cloudmanager.model import FileRecord, UploadRecord

database, number, threads, turns = sys.argv[1], *map(int, sys.argv[2:])
catalog = Catalog.open(database)
failures = []

def work(thread):
    try:
        for turn in range(turns):
            catalog.meter_add(1, 2, now=1.7e9)
            shared = hashlib.sha256(b"%d" % turn).hexdigest()
            own = hashlib.sha256(b"%d %d %d" % (number, thread, turn)).hexdigest()
            pair = [own, shared] if number % 2 else [shared, own]
            catalog.record(
                [FileRecord(h, "x", 1, 0.0) for h in pair],
                [UploadRecord(h, f"host {number} {thread}", "l") for h in pair]
                + [UploadRecord(shared, "everybody's", "l")],
                outgoing=10,
            )
    except BaseException as exc:
        failures.append(exc)

print("ready", flush=True)
sys.stdin.readline()
workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
catalog.close()
if failures:
    raise failures[0]
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_at_once(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let all go when all are ready; what each said."""
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [error for _, error in outputs if error] == []
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [output for output, _ in outputs]


def test_sixteen_writers_lose_no_update(database, catalog):
    on_server = "://" in database
    processes, threads, turns = (4, 4, 15) if on_server else (16, 1, 15)
    run_at_once([start(WRITER, database, n, threads, turns) for n in range(processes)])
    writers = processes * threads
    assert catalog.meter_month(1.7e9) == (writers * turns, 2 * writers * turns)
    assert catalog.meter_total() == (writers * turns, 12 * writers * turns)
    assert catalog.totals()[0] == turns + writers * turns
    counts = catalog.status_counts()
    assert {count.host: count.files for count in counts} == {
        "everybody's": turns,
        **{f"host {n} {t}": 2 * turns for n in range(processes) for t in range(threads)},
    }


def test_threads_share_one_catalog_while_others_look_up(catalog, file, copy, sha):
    failures: list[BaseException] = []
    done = threading.Event()

    def write(number: int) -> None:
        try:
            for turn in range(20):
                key = f"{number} {turn}"
                catalog.record([file(key)], [copy(key)], incoming=1)
                assert catalog.exists(sha(key))
                assert catalog.get(sha(key)) == file(key)
        except BaseException as exc:  # noqa: BLE001 - a thread's failure belongs to the test
            failures.append(exc)

    def look() -> None:
        try:
            while not done.is_set():
                assert not catalog.exists(sha("never"))
                catalog.waiting()
        except BaseException as exc:  # noqa: BLE001 - a thread's failure belongs to the test
            failures.append(exc)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    readers = [threading.Thread(target=look) for _ in range(3)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert catalog.totals() == (160, 800)
    assert catalog.meter_total() == (160, 0)


def test_threads_share_one_catalog_in_memory(file):
    with Catalog.open(":memory:") as catalog:

        def write(number: int) -> None:
            for turn in range(20):
                catalog.record([file((number, turn))], [])

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert catalog.totals()[0] == 160


OPENER = """
import sys
from cloudmanager.catalog import Catalog
from cloudmanager.model import FileRecord
print("ready", flush=True)
sys.stdin.readline()
with Catalog.open(sys.argv[1]) as catalog:
    catalog.record([FileRecord(sys.argv[2] * 64, "x", 1, 0.0)], [])
"""


@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_open_one_new_catalog_at_once_all_succeed(tmp_path, attempt):
    path = tmp_path / f"{attempt}.sqlite3"
    run_at_once([start(OPENER, path, digit) for digit in "0123"])
    with Catalog.open(path) as catalog:
        assert [record.hash[0] for record in catalog.files()] == list("0123")


def test_threads_that_open_new_catalogs_at_once_all_succeed(tmp_path):
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Catalog.open(tmp_path / f"{number % 2}.sqlite3") as catalog:
                catalog.meter_add(1, 0)
        except BaseException as exc:  # noqa: BLE001 - a thread's failure belongs to the test
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


SETTER = """
import sys
from cloudmanager.catalog import set_up
print("ready", flush=True)
sys.stdin.readline()
print(set_up(sys.argv[1]).split()[0])
"""


def test_set_up_at_once_creates_once(postgres):
    url = postgres.make_database()
    outputs = run_at_once([start(SETTER, url) for _ in range(4)])
    assert outputs.count("created\n") == 1
    Catalog.open(url).close()


# --- PostgreSQL: connections and transactions that fail -------------------------------------


@pytest.fixture
def behind(postgres) -> Iterator[tuple[Catalog, Engine]]:
    """A catalog on PostgreSQL, and an engine behind its back."""
    url = postgres.make_database()
    set_up(url)
    engine = create_engine(url)
    with Catalog.open(url) as catalog:
        yield catalog, engine
    engine.dispose()


def test_a_restart_of_the_server_between_calls_goes_unnoticed(behind, file):
    catalog, engine = behind
    catalog.record([file(1)], [])
    with engine.connect() as connection:
        ended = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ).all()
    assert ended
    assert catalog.get(file(1).hash) == file(1)
    assert catalog.exists(file(1).hash)


def test_a_transaction_whose_connection_breaks_is_run_again_once(behind):
    catalog, _ = behind
    runs = []

    def breaks_first(connection):
        runs.append(connection.scalar(text("SELECT pg_backend_pid()")))
        connection.execute(text("INSERT INTO transfer_meter VALUES ('2026-01', 1, 1)"))
        if len(runs) == 1:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    catalog._database.write(breaks_first, idempotent=False)
    assert len(set(runs)) == 2
    assert catalog.meter_total() == (1, 1)


def test_a_connection_that_breaks_again_and_again_is_an_error(behind):
    catalog, _ = behind
    runs = []

    def breaks(connection):
        runs.append(1)
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(CatalogUnavailable) as caught:
        catalog._database.read(breaks)
    assert caught.value.retryable
    assert len(runs) == 2


DIE_AT_COMMIT = """
CREATE SEQUENCE tries;
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('tries');
    PERFORM pg_terminate_backend(pg_backend_pid());
    PERFORM pg_sleep(5);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER die_meter AFTER INSERT ON transfer_meter
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
CREATE CONSTRAINT TRIGGER die_file AFTER INSERT ON files
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die();
"""


def test_bytes_are_never_metered_twice_when_nobody_knows_whether_a_commit_arrived(behind, file):
    catalog, engine = behind
    with engine.begin() as connection:
        connection.exec_driver_sql(DIE_AT_COMMIT)

    def tries() -> int:
        with engine.connect() as connection:
            return connection.scalar(text("SELECT last_value FROM tries"))

    with pytest.raises(CatalogUnavailable):
        catalog.meter_add(1, 1)
    assert tries() == 1
    with pytest.raises(CatalogUnavailable):
        catalog.record([file(1)], [], outgoing=1)
    assert tries() == 2
    with pytest.raises(CatalogUnavailable):
        catalog.record([file(1)], [])
    assert tries() == 4


def test_transactions_that_wait_for_each_other_both_succeed_in_the_end(behind):
    catalog, engine = behind
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO transfer_meter VALUES ('2026-01', 0, 0), ('2026-02', 0, 0)"
        )
    both_hold_one = threading.Barrier(2)
    runs: list[str] = []
    failures: list[BaseException] = []

    def cross(first: str, second: str) -> None:
        entered = False

        def work(connection):
            nonlocal entered
            runs.append(first)
            add = text("UPDATE transfer_meter SET incoming = incoming + 1 WHERE month = :month")
            connection.execute(add, {"month": first})
            if not entered:
                entered = True
                both_hold_one.wait()
            connection.execute(add, {"month": second})

        try:
            catalog._database.write(work, idempotent=False)
        except BaseException as exc:  # noqa: BLE001 - a thread's failure belongs to the test
            failures.append(exc)

    months = "2026-01", "2026-02"
    threads = [threading.Thread(target=cross, args=pair) for pair in (months, months[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(runs) > 2
    assert catalog.meter_total() == (4, 0)


def test_a_removal_between_the_two_steps_of_an_upload_does_not_fail_it(behind, file, copy, sha):
    catalog, engine = behind
    catalog.record([file(1)], [])
    removed: list[bool] = []

    def remove_in_between(_connection, _cursor, statement, *_) -> None:
        if statement.startswith("INSERT INTO uploads") and not removed:
            removed.append(True)
            with engine.begin() as connection:
                connection.execute(text("DELETE FROM files"))

    event.listen(catalog._database.engine, "before_cursor_execute", remove_in_between)
    catalog.record([file(1)], [copy(1)])
    assert removed
    assert catalog.get(sha(1)) == file(1)
    assert catalog.uploads(sha(1)) == [copy(1)]


def test_an_upload_that_meets_the_end_of_a_removal_adds_the_file_again(behind, file, copy, sha):
    catalog, engine = behind
    catalog.record([file(1)], [])
    with engine.connect() as removal:
        removal.execute(text("DELETE FROM files"))
        upload = threading.Thread(target=lambda: catalog.record([file(1)], [copy(1)]))
        upload.start()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watch:
            while not watch.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                assert upload.is_alive()
        removal.commit()
        upload.join()
    assert catalog.get(sha(1)) == file(1)
    assert catalog.uploads(sha(1)) == [copy(1)]


def test_a_removal_that_meets_an_upload_keeps_the_file(behind, file, copy, sha):
    catalog, engine = behind
    catalog.record([file(1)], [])
    finished: list[bool] = []
    with engine.connect() as upload:
        upload.execute(
            text(
                "INSERT INTO uploads (hash, host, location, status, external, attempts) "
                "VALUES (:hash, 'a', 'there', 'stored', false, 0)"
            ),
            {"hash": sha(1)},
        )
        removal = threading.Thread(target=lambda: finished.append(catalog.finish_removal(sha(1))))
        removal.start()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watch:
            while not watch.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                assert removal.is_alive()
        upload.commit()
        removal.join()
    assert finished == [False]
    assert catalog.uploads(sha(1)) == [copy(1, "a", "there")]
