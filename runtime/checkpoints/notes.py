"""Notes of what is being written for a checkpoint, so that the next daemon removes it if this one is killed over it.

    <root>/checkpoints/<random>   JSON: the paths that are made; fsynced before the first is, removed after the last is whole

The paths lie where the client asked for the checkpoint. Reading one of them again never happens: it is removed, or left.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from kernel import removal

if TYPE_CHECKING:
    from concurrent.futures import Executor

SWEEP_SECONDS: Final = 30.0
"""How long the start of the daemon waits for the removal: the paths can lie on a dead NFS."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def writing(notes: Path, blocking: Executor, paths: Sequence[Path]) -> AsyncIterator[None]:
    """Within this, `paths` may be half written; they are removed if it is left by an exception, or never."""
    loop = asyncio.get_running_loop()
    note = notes / secrets.token_hex(8)
    await loop.run_in_executor(blocking, _write, note, paths)
    try:
        yield
    except BaseException:
        await asyncio.shield(loop.run_in_executor(blocking, _undo, note, paths))
        raise
    await loop.run_in_executor(blocking, note.unlink)


def _write(note: Path, paths: Sequence[Path]) -> None:
    note.parent.mkdir(mode=0o700, exist_ok=True)
    with open(note, "x", encoding="ascii") as file:
        json.dump([str(path) for path in paths], file)
        file.flush()
        os.fsync(file.fileno())


def _undo(note: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            removal.discard_tree(path)
        else:
            path.unlink(missing_ok=True)
    note.unlink(missing_ok=True)


async def sweep(notes: Path, blocking: Executor) -> None:
    """Remove what a daemon that was killed has left half written."""
    swept = asyncio.get_running_loop().run_in_executor(blocking, _sweep, notes)
    try:
        await asyncio.wait_for(swept, SWEEP_SECONDS)
    except TimeoutError:
        log.warning("half a checkpoint cannot be removed", seconds=SWEEP_SECONDS)


def _sweep(directory: Path) -> None:
    for note in directory.glob("*"):
        try:
            paths = [Path(path) for path in json.loads(note.read_bytes())]
            _undo(note, paths)
            log.info("swept", checkpoint=[str(path) for path in paths])
        except (OSError, ValueError, TypeError) as error:
            log.warning("half a checkpoint cannot be removed", note=str(note), error=str(error))
