"""State that outlives the daemon: `/var/lib/crisp/state.db`.

    table       key            value
    sandboxes   sandbox id     JSON of a SandboxRecord
    containers  container id   JSON of a ContainerRecord
    images      image id       JSON of an image record (imagesvc)
    leases      sandbox id     JSON of a network lease (runtime/network)
    settings    name           JSON of what a client told the daemon (the pod CIDR)

SQLite in WAL mode. One thread writes; changes that wait for it together are committed together. A commit survives the
death of the process at once. It survives a power cut only if it was asked to be `durable`: then the call returns after
fsync. Pods do not survive a power cut, so their records need not; images do.

Reads happen once, at start. Afterwards memory is the truth that lists are served from.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from proto.errors import Code, CrispError
from runtime.migrations import migrate

TABLES: Final = ("sandboxes", "containers", "images", "leases", "settings")
MAX_BATCH: Final = 256
"""Changes per transaction."""


@dataclass(frozen=True, slots=True)
class _Change:
    sql: str
    parameters: tuple[object, ...]
    durable: bool
    done: Future[None] = field(default_factory=Future)


class Table:
    """One table of JSON documents."""

    def __init__(self, name: str, rows: Callable[[str], Iterator[tuple[str, str]]], submit: Submit) -> None:
        self._name = name
        self._rows = rows
        self._submit = submit

    def load(self) -> list[Any]:
        """All documents, in the order they were first stored."""
        return [json.loads(value) for _, value in self._rows(self._name)]

    def items(self) -> list[tuple[str, Any]]:
        """All keys with their documents."""
        return [(key, json.loads(value)) for key, value in self._rows(self._name)]

    async def put(self, key: str, document: object, *, durable: bool = False) -> None:
        """Store a document in place of what stands under its key."""
        value = json.dumps(document, separators=(",", ":"))
        sql = f"INSERT INTO {self._name}(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"
        await self._submit(sql, (key, value), durable)

    async def delete(self, key: str, *, durable: bool = False) -> None:
        """Remove a document; success if there is none."""
        await self._submit(f"DELETE FROM {self._name} WHERE key = ?", (key,), durable)  # noqa: S608


Submit = Callable[[str, tuple[object, ...], bool], "asyncio.Future[None]"]


class Store:
    """The database with its writer thread."""

    def __init__(self, path: Path) -> None:
        """Open the database, making it if there is none.

        Raises FAILED_PRECONDITION if the file is not a database, or if a newer crisp wrote it.
        """
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.DatabaseError as error:
            raise CrispError(
                Code.FAILED_PRECONDITION,
                f"{path} is damaged or cannot be written ({error}): mend it, or move it away to start without records",
            ) from None
        self.failure = ""
        """Why the last write failed; empty if it did not."""
        self._queue: SimpleQueue[_Change | None] = SimpleQueue()
        self.sandboxes, self.containers, self.images, self.leases, self.settings = (
            Table(name, self._rows, self._submit) for name in TABLES
        )
        self._writer = threading.Thread(target=self._write, name="store", daemon=True)
        self._writer.start()

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        migrate(self._connection, self._path)

    def _rows(self, table: str) -> Iterator[tuple[str, str]]:
        return iter(self._connection.execute(f"SELECT key, value FROM {table} ORDER BY rowid").fetchall())  # noqa: S608

    def _submit(self, sql: str, parameters: tuple[object, ...], durable: bool) -> asyncio.Future[None]:
        change = _Change(sql, parameters, durable)
        self._queue.put(change)
        return asyncio.wrap_future(change.done)

    def _write(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    self._queue.put(None)
                    break
                batch.append(following)
            self._commit(batch)

    def _commit(self, batch: list[_Change]) -> None:
        """Apply a batch in one transaction; a failure (a full disk) reaches everybody who waits."""
        execute = self._connection.execute
        try:
            execute(f"PRAGMA synchronous = {'FULL' if any(c.durable for c in batch) else 'NORMAL'}")
            execute("BEGIN IMMEDIATE")
            try:
                for change in batch:
                    execute(change.sql, change.parameters)
                execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            self.failure = f"cannot write {self._path}: {error}"
            failure = CrispError(Code.RESOURCE_EXHAUSTED, self.failure)
            for change in batch:
                change.done.set_exception(failure)
        else:
            self.failure = ""
            for change in batch:
                change.done.set_result(None)

    def close(self) -> None:
        """Write what waits, then close."""
        self._queue.put(None)
        self._writer.join()
        self._connection.close()
