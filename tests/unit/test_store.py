"""The database: documents come back, failures reach who waits, a newer schema is refused."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from proto.errors import Code, CrispError
from runtime.paths import Paths
from runtime.store import database
from runtime.store.database import TABLES, Store
from runtime.store.record_copies import Copies


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
    store._connection.execute("DROP TABLE leases")
    with pytest.raises(CrispError, match="leases") as caught:
        await store.leases.put("a", 1)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert "leases" in store.failure
    await store.images.put("a", 1)
    assert store.failure == ""
    store.close()


class SlowCopies:
    """Copies that wait until they may go on, or fail."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def put(self, *_: object) -> None:
        self.reached.set()
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error

    def delete(self, *_: object) -> None:
        return

    def mend(self, *_: object) -> None:
        return

    def all(self, known: object = ()) -> list[Any]:
        return []


async def test_who_gives_up_waiting_does_not_end_the_writer(tmp_path: Path) -> None:
    """At every moment: as it waits in the queue, and as it is being written."""
    copies: Any = SlowCopies()
    store = Store(tmp_path / "state.db", copies)
    writing, waiting = (asyncio.ensure_future(store.images.put(key, 1)) for key in ("writing", "waiting"))
    assert await asyncio.to_thread(copies.reached.wait, 30)
    for task in (writing, waiting):
        task.cancel()
    await asyncio.gather(writing, waiting, return_exceptions=True)
    copies.go_on.set()
    await asyncio.wait_for(store.images.put("later", 1), 30)
    assert dict(store.images.items()) == {"writing": 1, "waiting": 1, "later": 1}
    assert store.problem == ""
    store.close()


async def test_the_writer_survives_what_nobody_has_foreseen(tmp_path: Path) -> None:
    copies: Any = SlowCopies()
    copies.go_on.set()
    store = Store(tmp_path / "state.db", copies)
    copies.error = RuntimeError("a defect")
    with capture_logs() as logs:
        await asyncio.gather(*(store.images.put(str(n), n) for n in range(50)), return_exceptions=True)
    assert {entry["event"] for entry in logs} == {"the database's writer has failed"}
    copies.error = None
    await asyncio.wait_for(store.images.put("later", 1), 30)
    assert store.problem == ""
    store.close()


async def test_a_database_that_cannot_be_made_anew_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "state.db")
    await store.images.put("a", 1)

    def damaged(_: object) -> None:
        raise database._corrupt("a bad page")

    def refused() -> sqlite3.Connection:
        raise CrispError(Code.FAILED_PRECONDITION, "no disk")

    with monkeypatch.context() as broken:
        broken.setattr(store, "_apply", damaged)
        broken.setattr(store, "_open", refused)
        for _ in range(2):
            with pytest.raises(CrispError, match="no disk"):
                await asyncio.wait_for(store.images.put("b", 1), 30)
        assert "no disk" in store.problem
    await asyncio.wait_for(store.images.put("c", 1), 30)
    assert store.problem == ""
    store.close()


async def test_a_stalled_write_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STALLED_SECONDS", 0.0)
    copies: Any = SlowCopies()
    store = Store(tmp_path / "state.db", copies)
    task = asyncio.ensure_future(store.images.put("a", 1))
    assert await asyncio.to_thread(copies.reached.wait, 30)
    assert "for the disk" in store.problem
    copies.go_on.set()
    await task
    store.close()


def test_damaged_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is no database" * 100)
    with capture_logs() as logs:
        store = Store(tmp_path / "state.db")
    assert store.sandboxes.items() == []
    store.close()
    (kept,) = tmp_path.glob("state.db.damaged-*")
    assert kept.read_bytes().startswith(b"this is no database")
    assert any("damaged" in entry["event"] and entry["kept"] == str(kept) for entry in logs)


def copies_of(tmp_path: Path) -> Copies:
    paths = Paths(tmp_path / "lib", tmp_path / "run")
    for directory in (paths.root, paths.sandboxes / "s", paths.bundles / "c"):
        directory.mkdir(parents=True, exist_ok=True)
    return Copies(paths)


async def filled(tmp_path: Path) -> Store:
    store = Store(tmp_path / "lib/state.db", copies_of(tmp_path))
    for table, key in (("sandboxes", "s"), ("leases", "s"), ("containers", "c"), ("settings", "x"), ("images", "sha256:1")):
        await getattr(store, table).put(key, {"old": True}, durable=table == "images")
        await getattr(store, table).put(key, {"of": table})
    await store.sandboxes.put("without a directory", {})
    await store.settings.put("gone", 1)
    await store.settings.delete("gone")
    return store


def everything(store: Store) -> dict[str, list[tuple[str, object]]]:
    return {name: getattr(store, name).items() for name in TABLES}


WANTED = {
    "sandboxes": [("s", {"of": "sandboxes"})],
    "leases": [("s", {"of": "leases"})],
    "containers": [("c", {"of": "containers"})],
    "settings": [("x", {"of": "settings"})],
    "images": [("sha256:1", {"of": "images"})],
}


@pytest.mark.parametrize("damage", ["garbage", "missing", "empty", "a page"])
async def test_new_database_is_filled_from_the_copies(tmp_path: Path, damage: str) -> None:
    (await filled(tmp_path)).close()
    path = tmp_path / "lib/state.db"
    match damage:
        case "garbage":
            path.write_bytes(os.urandom(20_000))
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "a page":
            content = path.read_bytes()
            path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    with capture_logs() as logs:
        store = Store(path, copies_of(tmp_path))
    assert everything(store) == WANTED
    assert any(entry.get("records") == 5 for entry in logs)
    await store.sandboxes.put("s", {"goes": "on"})
    store.close()


async def test_damage_that_a_write_finds(tmp_path: Path) -> None:
    store = await filled(tmp_path)
    path = tmp_path / "lib/state.db"
    store._connection.execute("PRAGMA wal_checkpoint")
    store._connection.execute("PRAGMA shrink_memory")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(path.stat().st_size - 100))
    with capture_logs():
        await store.containers.put("c", {"of": "containers"})
    assert store.failure == ""
    assert everything(store) == WANTED
    store.close()
    assert list((tmp_path / "lib").glob("state.db.damaged-*"))


async def test_old_database_gets_back_records_of_pods(tmp_path: Path) -> None:
    """As after a backup was restored, or a disk has lost what was written last."""
    (await filled(tmp_path)).close()
    Store(tmp_path / "backup.db").close()
    (tmp_path / "backup.db").rename(tmp_path / "lib/state.db")
    (tmp_path / "lib/state.db-wal").unlink()
    with capture_logs() as logs:
        store = Store(tmp_path / "lib/state.db", copies_of(tmp_path))
    assert everything(store) == {**WANTED, "settings": [], "images": []}
    assert any(entry.get("records") == 3 for entry in logs)
    store.close()


async def test_copies_follow_the_database(tmp_path: Path) -> None:
    """They are mended at the start: one that is behind, one that is missing, one of a record that is gone."""
    (await filled(tmp_path)).close()
    sandbox, lease, setting = (
        tmp_path / "run" / n for n in ("sandboxes/s/record.json", "sandboxes/s/lease.json", "settings")
    )
    sandbox.write_text('{"schema":1,"document":{"old":true}}')
    lease.unlink()
    (setting / "gone.json").write_text('{"schema":1,"document":1}')
    Store(tmp_path / "lib/state.db", copies_of(tmp_path)).close()
    assert json.loads(sandbox.read_bytes())["document"] == {"of": "sandboxes"}
    assert json.loads(lease.read_bytes())["document"] == {"of": "leases"}
    assert os.listdir(setting) == ["x.json"]
    assert sandbox.stat().st_mode & 0o777 == 0o600


async def test_unreadable_copy_is_left_out(tmp_path: Path) -> None:
    (await filled(tmp_path)).close()
    (tmp_path / "run/containers/c/record.json").write_text("{")
    (tmp_path / "lib/state.db").unlink()
    with capture_logs() as logs:
        store = Store(tmp_path / "lib/state.db", copies_of(tmp_path))
    assert everything(store) == {**WANTED, "containers": []}
    assert any("cannot be read" in entry["event"] for entry in logs)
    store.close()


async def test_copies_of_a_newer_schema_are_refused(tmp_path: Path) -> None:
    (await filled(tmp_path)).close()
    (tmp_path / "run/settings/x.json").write_text('{"schema":99,"document":1}')
    for name in ("run/sandboxes/s/record.json", "run/sandboxes/s/lease.json", "run/containers/c/record.json"):
        (tmp_path / name).unlink()
    (tmp_path / "lib/images/sha256:1.json").unlink()
    (tmp_path / "lib/state.db").unlink()
    with pytest.raises(CrispError, match="schema 99"):
        Store(tmp_path / "lib/state.db", copies_of(tmp_path))


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CrispError, match="schema 99"):
        Store(tmp_path / "state.db")
