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

A file that is damaged is set aside as `state.db.damaged-<UTC time>`, at start or when a write finds it so, and a new one
takes its place. A new database is filled from the copies of records (record_copies.py): what runs is found again. An old one
gets back records of pods that it has lost (a backup, or a disk that has failed), for those of what was removed have no copy.

The log (`state.db-wal`) is as large as it will ever be from the beginning, and has its index in memory: so the daemon starts
on a disk that is full to the last block, and can record there what is stopped and removed. What would need room is refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import structlog

from proto.errors import Code, CrispError
from runtime.store.migrations import MIGRATIONS, migrate

if TYPE_CHECKING:
    from runtime.store.record_copies import Copies, Copy

log = structlog.get_logger(__name__)

TABLES: Final = ("sandboxes", "containers", "images", "leases", "settings")
POD_TABLES: Final = ("sandboxes", "containers", "leases")
"""Their copies are in directories that are removed before the record is."""

MAX_BATCH: Final = 256
"""Changes per transaction."""

LOG_BYTES: Final = 8 << 20
"""Size of SQLite's log. After 1000 pages, 4 MiB, it is carried over into the database and written from its beginning."""

ROOM_BYTES: Final = 1 << 20
"""With less free space nothing new is begun."""

STALLED_SECONDS: Final = 10.0
"""A write that takes longer waits for a disk that does not answer."""

_UPSERT: Final = "INSERT INTO {}(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True)
class _Change:
    table: str
    key: str
    value: str | None
    """JSON; None to delete."""
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
        await self._submit(_Change(self._name, key, json.dumps(document, separators=(",", ":")), durable))

    async def note(self, key: str, document: object) -> None:
        """Store what has happened already, and cannot be refused any more.

        A failure is logged only: memory knows of it, and the next start finds it out from the kernel or an exit record.
        """
        try:
            await self.put(key, document)
        except CrispError as error:
            log.error("not recorded", table=self._name, key=key, error=error.message)

    async def delete(self, key: str, *, durable: bool = False) -> None:
        """Remove a document; success if there is none."""
        await self._submit(_Change(self._name, key, None, durable))


Submit = Callable[[_Change], "asyncio.Future[None]"]


class Store:
    """The database with its writer thread."""

    def __init__(self, path: Path, copies: Copies | None = None) -> None:
        """Open the database, making it if there is none.

        Raises FAILED_PRECONDITION if it cannot be read or written, or if a newer crisp wrote it.
        """
        self._path = path
        self._copies = copies
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._connection = self._first_open()
        self.failure = ""
        """Why the last write failed; empty if it did not."""
        self._closed = False  # a damaged database could not be made anew
        self._begun = 0.0  # since when the writer is at what it writes, on the monotonic clock
        self._queue: SimpleQueue[_Change | None] = SimpleQueue()
        self.sandboxes, self.containers, self.images, self.leases, self.settings = (
            Table(name, self._rows, self._submit) for name in TABLES
        )
        if copies is not None:
            for name in TABLES:
                copies.mend(name, self._rows(name), len(MIGRATIONS))
        self._writer = threading.Thread(target=self._write, name="store", daemon=True)
        self._writer.start()

    def require_room(self) -> None:
        """Raise RESOURCE_EXHAUSTED while the disk has no room for anything new."""
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < ROOM_BYTES:
            raise CrispError(Code.RESOURCE_EXHAUSTED, f"{self._path.parent} is full: remove images or files there")

    async def try_again(self) -> None:
        """After a failed write, see whether writes work again: perhaps nobody else has anything to write."""
        if self.failure:
            await self.settings.note("last_failure", self.failure)

    # --- opening -------------------------------------------------------------------------------------------------

    def _first_open(self) -> sqlite3.Connection:
        """Open, whatever the last life of the daemon has left."""
        try:
            try:
                return self._open()
            except sqlite3.DatabaseError as error:
                if not _damaged(error):
                    raise
                self._set_aside(error)
                return self._open()
        except (sqlite3.Error, OSError) as error:
            raise CrispError(Code.FAILED_PRECONDITION, f"{self._path} cannot be opened: {error}") from None

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists() or not self._path.stat().st_size:
            self._make_new()
        _claim_log(self._path)
        connection = _connect(self._path)
        try:
            ((found,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise _corrupt(found)
            if self._copies is not None:
                _take_back(connection, self._copies)
            migrate(connection, self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_new(self) -> None:
        """Make the database, with what the copies have; it gets its name when it is whole."""
        new = f"{self._path}.new"
        # SQLite would take the log of the database that was lost for the new one's.
        for stale in (new, f"{new}-wal", f"{new}-shm", f"{self._path}-wal", f"{self._path}-shm"):
            with suppress(FileNotFoundError):
                os.unlink(stale)
        copies = list(self._copies.all()) if self._copies is not None else []
        with closing(_connect(new)) as connection:
            _fill(connection, new, copies)
        os.rename(new, self._path)
        if copies:
            log.warning("the database is new: its records are taken from their copies", records=len(copies))

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Give the damaged file and its log other names."""
        name = f"{self._path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(f"{self._path}{suffix}", name + suffix)
        log.error(
            "the database is damaged: it is set aside, and made anew of the copies of records", error=str(error), kept=name
        )

    # --- reading and writing -------------------------------------------------------------------------------------

    def _rows(self, table: str) -> Iterator[tuple[str, str]]:
        return iter(self._connection.execute(f"SELECT key, value FROM {table} ORDER BY rowid").fetchall())  # noqa: S608

    def _submit(self, change: _Change) -> asyncio.Future[None]:
        # From here on nobody can cancel it: who gives up waiting cancels his own future, and not what the writer answers.
        change.done.set_running_or_notify_cancel()
        self._queue.put(change)
        return asyncio.wrap_future(change.done)

    @property
    def problem(self) -> str:
        """Why nothing can be recorded at present; empty if all is well."""
        if not self._writer.is_alive():
            return f"the writer of {self._path} has ended: restart crisp"
        begun = self._begun
        if begun and (waited := time.monotonic() - begun) > STALLED_SECONDS:
            return f"{self._path} has been waiting {waited:.0f} s for the disk"
        return self.failure

    def _write(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    self._queue.put(None)
                    break
                batch.append(following)
            self._begun = time.monotonic()
            try:
                self._commit(batch)
            except Exception as error:
                # A defect, or a database that cannot be made anew. All pods need this thread.
                log.error("the database's writer has failed", error=repr(error))
                self._refuse(batch, error)
            self._begun = 0.0

    def _refuse(self, batch: list[_Change], error: Exception) -> None:
        """Tell everybody who waits, and whose change is not committed, of a failure."""
        self.failure = f"cannot write {self._path}: {error}"
        failure = CrispError(Code.RESOURCE_EXHAUSTED, self.failure)
        for change in batch:
            if not change.done.done():
                change.done.set_exception(failure)

    def _commit(self, batch: list[_Change]) -> None:
        """Apply a batch in one transaction; a failure (a full disk) reaches everybody who waits."""
        try:
            if self._closed:
                self._connection, self._closed = self._open(), False
            before = self._connection.total_changes
            try:
                self._apply(batch)
            except sqlite3.DatabaseError as error:
                if not _damaged(error):
                    raise
                self._connection.close()
                self._closed = True
                self._set_aside(error)
                self._connection, self._closed = self._open(), False
                before = self._connection.total_changes
                self._apply(batch)
        except (sqlite3.Error, OSError) as error:
            self._refuse(batch, error)
            return
        if self._connection.total_changes > before:  # deleting what is not there writes nothing
            self.failure = ""
        for change in batch:
            try:
                self._copy(change)
            finally:  # it is committed, whatever became of the copy
                change.done.set_result(None)

    def _apply(self, batch: list[_Change]) -> None:
        execute = self._connection.execute
        execute(f"PRAGMA synchronous = {'FULL' if any(c.durable for c in batch) else 'NORMAL'}")
        execute("BEGIN IMMEDIATE")
        try:
            for change in batch:
                if change.value is None:
                    execute(f"DELETE FROM {change.table} WHERE key = ?", (change.key,))  # noqa: S608
                else:
                    execute(_UPSERT.format(change.table), (change.key, change.value))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    execute("ROLLBACK")
            raise

    def _copy(self, change: _Change) -> None:
        if self._copies is None:
            return
        if change.value is None:
            self._copies.delete(change.table, change.key)
        else:
            self._copies.put(change.table, change.key, change.value, len(MIGRATIONS))

    def close(self) -> None:
        """Write what waits, then close."""
        self._queue.put(None)
        self._writer.join()
        self._connection.close()  # which removes the log
        _claim_log(self._path)


def _claim_log(path: Path) -> None:
    """Fill the log of a database that is not open up with zeros, which SQLite takes for its end."""
    try:
        with open(f"{path}-wal", "ab") as file:
            file.write(bytes(max(0, LOG_BYTES - file.tell())))
    except OSError as error:
        log.warning("no room for the log of the database", error=error.strerror)


def _connect(path: str | Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # the log's index is in memory, not in a file
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _fill(connection: sqlite3.Connection, path: str, copies: Sequence[Copy]) -> None:
    """Take the copies of records into a new database, in the schema that they were written in."""
    schema = min((copy.schema for copy in copies), default=len(MIGRATIONS))
    migrate(connection, path, MIGRATIONS[:schema])
    connection.execute("BEGIN IMMEDIATE")
    _insert(connection, copies)
    connection.execute(f"PRAGMA user_version = {schema}")
    connection.execute("COMMIT")


def _take_back(connection: sqlite3.Connection, copies: Copies) -> None:
    """Enter copies of pods' records of which the database has none."""
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    present = {(t, key) for t in POD_TABLES for (key,) in connection.execute(f"SELECT key FROM {t}")}  # noqa: S608
    missing = [copy for copy in copies.all(known=present) if copy.table in POD_TABLES and copy.schema == schema]
    if missing:
        log.warning("the database has lost records: they are taken from their copies", records=len(missing))
        connection.execute("BEGIN IMMEDIATE")
        _insert(connection, missing)
        connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, copies: Sequence[Copy]) -> None:
    for copy in copies:
        value = json.dumps(copy.document, separators=(",", ":"))
        connection.execute(_UPSERT.format(copy.table), (copy.key, value))


def _damaged(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _corrupt(why: str) -> sqlite3.DatabaseError:
    """What a check found, in the form in which SQLite itself reports it."""
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
