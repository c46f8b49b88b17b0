"""A second home for records, beside what they describe: what a new database is filled from when the old one is lost.

    table        copy                                        goes
    sandboxes    <state>/sandboxes/<id>/record.json          with the sandbox's directory
    leases       <state>/sandboxes/<id>/lease.json           with the lease
    containers   <state>/containers/<id>/record.json         with the bundle
    settings     <state>/settings/<name>.json                with a reboot
    images       <root>/images/<id>.json                     with the record

Each is `{"schema": N, "document": ...}`, written beside and renamed after the database has committed: at worst it is one
change behind, which recovery makes up for as after any crash. A record whose directory is not there has no copy: nothing of
what it describes exists yet, or it is about to go. A copy that cannot be written is logged and no failure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    from runtime.paths import Paths

log = structlog.get_logger(__name__)

DURABLE: Final = frozenset(("images",))
"""Tables whose copies are fsynced: they must survive a power cut."""


class Copy(NamedTuple):
    """One record as it was last stored."""

    table: str
    key: str
    document: Any
    schema: int


class Copies:
    """The copies of one daemon. Methods block; they raise nothing."""

    def __init__(self, paths: Paths) -> None:
        self._directories: dict[str, tuple[Path, str]] = {
            "sandboxes": (paths.sandboxes, "record.json"),
            "leases": (paths.sandboxes, "lease.json"),
            "containers": (paths.bundles, "record.json"),
        }
        self._flat: dict[str, Path] = {"settings": paths.settings, "images": paths.image_records}
        for directory in self._flat.values():
            with suppress(OSError):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, table: str, key: str) -> Path:
        if (flat := self._flat.get(table)) is not None:
            return flat / f"{key}.json"
        parent, name = self._directories[table]
        return parent / key / name

    def put(self, table: str, key: str, value: str, schema: int) -> None:
        """Keep the JSON text `value` as the copy of a record."""
        path = self._path(table, key)
        try:
            _replace(path, _text(value, schema), durable=table in DURABLE)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("a record has no copy", path=str(path), error=error.strerror)

    def delete(self, table: str, key: str) -> None:
        """Remove the copy of a record, if there is one."""
        with suppress(OSError):
            self._path(table, key).unlink()

    def mend(self, table: str, rows: Iterable[tuple[str, str]], schema: int) -> None:
        """Bring the copies of a table to what the database has."""
        kept = set()
        for key, value in rows:
            kept.add(key)
            try:
                same = self._path(table, key).read_bytes() == _text(value, schema)
            except OSError:
                same = False
            if not same:
                self.put(table, key, value, schema)
        for key in set(self._keys(table)) - kept:
            self.delete(table, key)

    def all(self, known: Container[tuple[str, str]] = ()) -> Iterator[Copy]:
        """Every copy that can be read, but for those of the tables and keys in `known`."""
        for table in (*self._flat, *self._directories):
            for key in self._keys(table):
                if (table, key) in known:
                    continue
                path = self._path(table, key)
                try:
                    content = json.loads(path.read_bytes())
                    yield Copy(table, key, content["document"], int(content["schema"]))
                except FileNotFoundError:
                    continue
                except (OSError, ValueError, TypeError, KeyError) as error:
                    log.error("copy of a record cannot be read", path=str(path), error=str(error))

    def _keys(self, table: str) -> list[str]:
        flat = self._flat.get(table)
        try:
            names = sorted(os.listdir(flat or self._directories[table][0]))
        except OSError:
            return []
        return names if flat is None else [name.removesuffix(".json") for name in names if name.endswith(".json")]


def _text(value: str, schema: int) -> bytes:
    return f'{{"schema":{schema},"document":{value}}}'.encode()


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)  # variables can be secrets
    try:
        os.write(fd, content)
        if durable:
            os.fsync(fd)
    except OSError:
        os.unlink(new)
        raise
    finally:
        os.close(fd)
    os.rename(new, path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
