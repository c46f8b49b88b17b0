"""Hears what the event loop's thread does with files: on PYTHONPATH it is loaded by the daemon alone, which tests start so.

A call that can wait for a disk is written to the file CRISP_TEST_LOOP, one a line with who made it, from the first SIGUSR2
on: a start is not at issue. Files in memory (ALLOWED, and the state directory CRISP_TEST_MEMORY, which is in /run on a node)
answer at once. Modules that are imported late are in the page cache, and the daemon cannot go on without them anyway.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

ALLOWED = ("/proc/", "/sys/", "/dev/", "/run/", "pipe:", "socket:")
MODULES = (".py", ".pyc", ".so", "__pycache__", "site-packages", "/lib/python3")
EVENTS = frozenset((
    "open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
    "os.symlink", "os.truncate", "os.utime", "os.getxattr", "os.setxattr", "os.listxattr", "sqlite3.connect",
))  # fmt: skip
UNHEARD = ("stat", "lstat", "statvfs", "access", "readlink", "fsync", "fdatasync", "sync")
"""Calls without an audit event, which are wrapped."""


class Witness:
    def __init__(self, path: str, memory: str) -> None:
        self._report = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._allowed = (*ALLOWED, memory)
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._listening = False
        self._inside = False

    def begin(self, _number: int, _frame: FrameType | None) -> None:
        self._listening = True

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._listening or self._inside or event not in EVENTS:
            return
        if arguments and not isinstance(arguments[0], int):  # what is open already has been answered for
            self.saw(event, arguments[0])

    def saw(self, event: str, place: Any) -> None:
        if not self._listening or self._inside or threading.get_ident() != self._thread or os.getpid() != self._pid:
            return
        self._inside = True
        try:
            name = os.fsdecode(place)
            if not self._is_allowed(name):
                os.write(self._report, f"{event} {name} by {self._who()}\n".encode())
        except (TypeError, ValueError):
            return
        finally:
            self._inside = False

    def _is_allowed(self, name: str) -> bool:
        return any(name == place.rstrip("/") or name.startswith(place) for place in self._allowed) or any(
            sign in name for sign in MODULES
        )

    def _who(self) -> str:
        found, frame = [], sys._getframe(2)
        while frame is not None and len(found) < 4:
            code = frame.f_code
            if "/runtime/" in code.co_filename or "/imagesvc/" in code.co_filename or "/kernel/" in code.co_filename:
                found.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
            frame = frame.f_back
        return " < ".join(found)

    def wrap(self, name: str) -> None:
        original = getattr(os, name)

        def heard(*arguments: Any, **options: Any) -> Any:
            place = arguments[0] if arguments else options.get("path", "")
            if options.get("dir_fd") is None and not isinstance(place, int):
                self.saw(f"os.{name}", place)
            return original(*arguments, **options)

        setattr(os, name, heard)


if file := os.environ.pop("CRISP_TEST_LOOP", ""):
    witness = Witness(file, os.environ.pop("CRISP_TEST_MEMORY"))
    signal.signal(signal.SIGUSR2, witness.begin)
    for call in UNHEARD:
        witness.wrap(call)
    sys.addaudithook(witness.hear)
