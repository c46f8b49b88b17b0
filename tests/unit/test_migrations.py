"""Migrations: each once, in order, whole or not at all; a database from a newer crisp stays as it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.store.database import TABLES, Store
from runtime.store.migrations import MIGRATIONS, migrate


def opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def database_of_schema_1(path: Path) -> None:
    """As crisp 0.1.0 made it, statement by statement: this text never changes."""
    connection = opened(path)
    connection.execute("PRAGMA journal_mode = WAL")
    for name in ("sandboxes", "containers", "images", "leases", "settings"):
        connection.execute(f"CREATE TABLE {name}(key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute("""INSERT INTO images VALUES('sha256:1', '{"names":["a"]}')""")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_new_database_gets_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    assert [getattr(store, name).load() for name in TABLES] == [[]] * len(TABLES)
    store.close()
    assert version_of(opened(tmp_path / "state.db")) == len(MIGRATIONS)


def test_schema_1_is_still_read(tmp_path: Path) -> None:
    database_of_schema_1(tmp_path / "state.db")
    store = Store(tmp_path / "state.db")
    assert store.images.items() == [("sha256:1", {"names": ["a"]})]
    store.close()


def test_only_what_is_lacking_runs_and_in_order(tmp_path: Path) -> None:
    database_of_schema_1(tmp_path / "state.db")
    connection = opened(tmp_path / "state.db")
    ran = []

    def second(database: sqlite3.Connection) -> None:
        ran.append(2)
        database.execute("ALTER TABLE images RENAME TO pictures")

    def third(database: sqlite3.Connection) -> None:
        ran.append(3)
        database.execute("UPDATE pictures SET value = json_set(value, '$.kind', 'oci')")

    for _ in range(2):
        migrate(connection, "state.db", [*MIGRATIONS[:1], second, third])
    assert ran == [2, 3]
    assert version_of(connection) == 3
    assert connection.execute("SELECT value FROM pictures").fetchall() == [('{"names":["a"],"kind":"oci"}',)]


def test_a_failure_leaves_the_version_before(tmp_path: Path) -> None:
    database_of_schema_1(tmp_path / "state.db")
    connection = opened(tmp_path / "state.db")

    def fails(database: sqlite3.Connection) -> None:
        database.execute("DROP TABLE images")
        database.execute("INSERT INTO nowhere VALUES(1)")

    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(connection, "state.db", [*MIGRATIONS[:1], fails])
    assert version_of(connection) == 1
    assert connection.execute("SELECT count(*) FROM images").fetchone() == (1,)
    assert not connection.in_transaction


def test_newer_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database_of_schema_1(path)
    newer = len(MIGRATIONS) + 1
    with closing(opened(path)) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    with pytest.raises(CrispError, match=f"schema {newer}.*install that version again") as caught:
        Store(path)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert version_of(opened(path)) == newer
