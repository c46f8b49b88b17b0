"""The database: documents come back, failures reach who waits, a newer schema is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.store import Store


async def test_documents_survive(tmp_path: Path) -> None:
    store = Store(tmp_path / "db" / "state.db")
    await store.sandboxes.put("a", {"x": 1})
    await store.sandboxes.put("b", [2])
    await store.sandboxes.put("a", {"x": 3}, durable=True)
    await store.images.put("a", "other table")
    await store.sandboxes.delete("b")
    await store.sandboxes.delete("never there")
    store.close()
    store = Store(tmp_path / "db" / "state.db")
    assert store.sandboxes.items() == [("a", {"x": 3})]
    assert store.images.load() == ["other table"]
    store.close()


async def test_many_writers_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    await asyncio.gather(*(store.leases.put(str(i), i, durable=i % 50 == 0) for i in range(1000)))
    assert sorted(store.leases.load()) == list(range(1000))
    store.close()


async def test_failure_reaches_who_waits(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    other = sqlite3.connect(tmp_path / "state.db")
    other.execute("DROP TABLE leases")
    other.commit()
    with pytest.raises(CrispError, match="leases") as caught:
        await store.leases.put("a", 1)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert "leases" in store.failure
    await store.images.put("a", 1)
    assert store.failure == ""
    other.close()
    store.close()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(CrispError, match=r"state\.db is damaged"):
        Store(tmp_path / "state.db")


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CrispError, match="schema 99"):
        Store(tmp_path / "state.db")
