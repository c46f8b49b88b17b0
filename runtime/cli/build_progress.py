"""What a build shows on the standard error: lines for people and logs, objects for programs, or nothing but failures.

On a terminal it is a picture, see `build_terminal.py`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import click

from runtime.cli.output import clean, fail

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from proto import admin_pb2 as admin
    from runtime.cli.build_terminal import Picture
    from runtime.cli.signals import Signals

FORMS: Final = ("auto", "plain", "json", "tty", "quiet")
QUIET: Final = "quiet"
KEPT_LINES: Final = 100
"""Of a step's output, which are shown if it fails and was not to be seen."""

LINE_BYTES: Final = 1 << 16
"""Of a line that does not end; what follows is shown as another one."""


def shown(form: str, signals: Signals) -> Shown | Picture:
    """What shows a build; a context manager. `form`: of FORMS."""
    if form in ("auto", "tty"):
        if sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown"):
            from runtime.cli.build_terminal import Picture  # noqa: PLC0415  only where a person looks on

            return Picture(signals)
        if form == "tty":
            fail("--progress tty: the standard error is no terminal that can be drawn on", 2)
    return Shown(form)


class Shown:
    """Shows steps, each with its number: `#3 [2/4] RUN make`, `#3 0.251 its output`, `#3 DONE 1.2s`."""

    def __init__(self, form: str) -> None:
        """`form`: of FORMS, or QUIET."""
        self._json, self._quiet = form == "json", form == QUIET
        self._lock = threading.Lock()
        self._began: list[tuple[float, str]] = []
        self._partial: dict[int, bytes] = {}
        self._last: dict[int, deque[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return

    def begin(self, name: str) -> int:
        """A step has begun; its number."""
        with self._lock:
            self._began.append((time.monotonic(), name))
            number = len(self._began)
            self._say(number, "start", name)
        return number

    def output(self, step: int, line: bytes) -> None:
        """It has printed something."""
        with self._lock:
            data = self._partial.pop(step, b"") + line
            if data.endswith(b"\n"):
                self._line(step, data[:-1])
            elif len(data) >= LINE_BYTES:  # it may never end
                self._line(step, data)
            else:
                self._partial[step] = data

    def fetched(self, step: int, told: admin.ImageProgress) -> None:
        """A layer of the image that it fetches, or uploads, is so far: lines say nothing of it."""

    def _line(self, step: int, data: bytes) -> None:
        text = data.decode(errors="replace").rstrip("\r")
        if self._quiet:
            self._last.setdefault(step, deque(maxlen=KEPT_LINES)).append(text)
        elif self._json:
            self._say(step, "output", text)
        else:
            self._say(step, "output", f"{self._seconds(step):.3f} {text}")

    def end(self, step: int, how: str) -> None:
        """It is over."""
        with self._lock:
            if rest := self._partial.pop(step, b""):
                self._line(step, rest)
            if how not in ("done", "cached"):
                for line in self._last.pop(step, ()):
                    click.echo(clean(line, lines=False), err=True)
            self._last.pop(step, None)
            if self._json:
                self._say(step, how if how in ("done", "cached") else "failed", how)
            elif how == "done":
                self._say(step, "done", f"DONE {self._seconds(step):.1f}s")
            else:
                self._say(step, how, "CACHED" if how == "cached" else f"ERROR: {how}")

    def warn(self, text: str) -> None:
        """Something that the author would want to know."""
        with self._lock:
            if self._json:
                click.echo(json.dumps({"event": "warning", "text": text}), err=True)
            elif not self._quiet:
                click.echo(clean(f"crisp: {text}"), err=True)

    def _seconds(self, step: int) -> float:
        return time.monotonic() - self._began[step - 1][0]

    def _say(self, step: int, event: str, text: str) -> None:
        if self._quiet:
            return
        if self._json:
            told = {"step": step, "name": self._began[step - 1][1], "event": event, "seconds": round(self._seconds(step), 3)}
            if event in ("output", "failed"):
                told["text"] = text
            click.echo(json.dumps(told), err=True)
            return
        line = clean(f"#{step} {text}", lines=False)
        click.echo(line, err=True)
