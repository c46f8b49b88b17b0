"""The schema of `state.db` and how it came to be: an ordered list of migrations, numbered from 1 by their place in it.

    PRAGMA user_version = how many of them a database has had

A database that is new has had none. Opening one carries out what it lacks, each migration in a transaction that also
counts it: a crash or a full disk in the middle leaves the database as some released crisp left it. There is no way back:
an older crisp refuses a database that has had migrations which it does not know.

What is released is never edited, only followed by another one: databases exist that have had it. A change of a document
that an older crisp reads as well as a newer one (a further key) needs no migration; what an older one would misread does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from proto.errors import Code, CrispError

Migration = Callable[[sqlite3.Connection], None]


def first_tables(connection: sqlite3.Connection) -> None:
    """0.1.0: documents by key. It may find the tables: they were once made without a transaction."""
    for name in ("sandboxes", "containers", "images", "leases", "settings"):
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name}(key TEXT PRIMARY KEY, value TEXT NOT NULL)")


MIGRATIONS: Final[tuple[Migration, ...]] = (first_tables,)


def migrate(connection: sqlite3.Connection, path: object, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Carry out the migrations that the database at `path` lacks. The connection is in autocommit mode.

    Raises FAILED_PRECONDITION if a newer crisp has migrated it, and sqlite3.Error if a migration fails.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise CrispError(
            Code.FAILED_PRECONDITION,
            f"{path} has schema {version}, this crisp knows {len(migrations)}: a newer crisp has used it, and there is no "
            "way back; install that version again, or end its pods and move the file away (images are then pulled again)",
        )
    for number in range(version, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            migrations[number](connection)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
