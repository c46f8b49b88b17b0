"""What a person sees on a terminal, of what a program writes to it: as much of one as our own pictures need."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Self

from tests.harness.waiting import WAIT_SECONDS

_PART = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """A terminal of so many columns and rows, without an end upwards; `lines` is all that it shows."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.ours, self.theirs = pty.openpty()
        self.lines = [""]
        self.raw = b""
        self.cursor = True
        """Whether it is to be seen."""
        self._row = self._column = 0
        self._pending = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.resize(columns, rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in {self.ours, self.theirs} - {-1}:
            os.close(descriptor)

    def resize(self, columns: int, rows: int) -> None:
        """As a window is."""
        self.columns = columns
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def begun(self) -> None:
        """The program has it, and we do not any more: its end is seen."""
        os.close(self.theirs)
        self.theirs = -1

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")

    def until(self, wanted: str) -> str:
        """Look on until that is to be seen."""
        deadline = time.monotonic() + WAIT_SECONDS
        while wanted not in self.text:
            assert select.select([self.ours], [], [], max(0, deadline - time.monotonic()))[0], self.text
            assert self._read(), self.text
        return self.text

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Look on to the program's end; its exit code."""
        deadline = time.monotonic() + WAIT_SECONDS
        while select.select([self.ours], [], [], max(0, deadline - time.monotonic()))[0] and self._read():
            pass
        return process.wait(WAIT_SECONDS)

    def _read(self) -> bool:
        try:
            data = os.read(self.ours, 4096)
        except OSError:  # EIO: nobody has the other end
            return False
        self.raw += data
        self._feed(data)
        return bool(data)

    def _feed(self, data: bytes) -> None:
        text = self._pending + self._decoder.decode(data)
        cut = text.rfind("\x1b")
        whole = text[:cut] if cut >= 0 and not _PART.match(text, cut) else text
        self._pending = text[len(whole) :]
        for part in _PART.finditer(whole):
            self._do(part)

    def _do(self, part: re.Match[str]) -> None:
        text = part[0]
        if text == "\r":
            self._column = 0
        elif text == "\n":
            self._down()
        elif not text.startswith("\x1b"):
            for character in text:
                self._put(character)
        elif part[2] == "A":
            self._row = max(0, self._row - int(part[1] or 1))
        elif part[2] == "K":
            self.lines[self._row] = "" if part[1] == "2" else self.lines[self._row][: self._column]
        elif part[1] == "?25":
            self.cursor = part[2] == "h"
        else:
            assert part[2] == "m", text

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self._down()
            self._column = 0
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
        self._column += 1
