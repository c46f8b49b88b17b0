"""What a build shows on a terminal: what is done as lines that stay, and below them a picture of what is being done.

     => CACHED [1/3] RUN make                     0.0s       stays
    [+] Building 4.2s (1 done, 1 of them cached)             drawn anew, ten times a second
     => [2/3] RUN make test                       3.9s
     => => # the last lines of its output

One thread writes, so that no step waits for a slow terminal; at the end the picture is gone, and the failed step's output is
printed as a whole.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime.build.progress import ENDED
from runtime.cli.output import Bars, clean
from runtime.cli.signals import Signals

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType

    from proto import admin_pb2 as admin

DRAW_SECONDS: Final = 0.1
LAST_LINES: Final = 6
"""Of each step's output, as far as there is room; docker's has as many."""

KEPT_BYTES: Final = 2 << 20
"""Of a step's output, for when it fails: its end; BuildKit keeps as much."""

LAST_SECONDS: Final = 5.0
"""For which a terminal that takes nothing is waited for at the end."""

_ESCAPES: Final = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])")
_SHOWN_AS: Final = {"done": ("", "green"), "cached": ("CACHED ", "cyan"), "canceled": ("CANCELED ", "yellow")}


class _Step:
    """A step that goes on, or has failed."""

    def __init__(self, name: str) -> None:
        self.name = clean(name.split("\n", 1)[0], lines=False)
        self.began = time.monotonic()
        self.output = bytearray()
        self.left_out = 0
        self.bars: Bars | None = None

    def add(self, data: bytes) -> None:
        """It has printed something."""
        self.output += data
        if len(self.output) > 2 * KEPT_BYTES:
            self.cut()

    def cut(self) -> None:
        """Keep no more than there is to be."""
        if (over := len(self.output) - KEPT_BYTES) > 0:
            self.left_out += over
            del self.output[:over]

    def last_lines(self, count: int) -> list[str]:
        """What a terminal would have: of a line that is written over, what was written last."""
        lines = bytes(self.output[-8192:]).rstrip(b"\n").split(b"\n")[-count:] if count > 0 else []
        return [_text(line.rstrip(b"\r").rpartition(b"\r")[2]) for line in lines if line]


class Picture:
    """Shows steps to a person; use it as a context manager."""

    def __init__(self, signals: Signals) -> None:
        """`signals` are held while the terminal is put in order."""
        self._signals = signals
        # The terminal knows its size, also after a change; variables of a shell that has exported them do not.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._console = Console(stderr=True, highlight=False, emoji=False, markup=False, _environ=environment)
        self._lock = threading.Lock()
        self._began, self._count, self._done, self._cached = time.monotonic(), 0, 0, 0
        self._steps: dict[int, _Step] = {}
        self._failed: list[tuple[_Step, str]] = []
        self._lines: deque[RenderableType] = deque()
        """That are to stay, and wait for being written."""
        self._over, self._end = threading.Event(), ""
        self._thread = threading.Thread(target=self._draw, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._signals.held():
            self._end = "" if kind else " FINISHED"
            self._over.set()
            self._thread.join(LAST_SECONDS)
        with suppress(OSError):
            for step, _ in self._failed:
                _print_output(step)

    # What a build tells, from any thread

    def begin(self, name: str) -> int:
        """A step has begun; its number."""
        with self._lock:
            self._count += 1
            self._steps[self._count] = _Step(name)
            return self._count

    def output(self, step: int, line: bytes) -> None:
        """It has printed something."""
        with self._lock:
            self._steps[step].add(line)

    def fetched(self, step: int, told: admin.ImageProgress) -> None:
        """A layer of the image that it fetches, or uploads, is so far."""
        with self._lock:
            found = self._steps[step]
            found.bars = found.bars or Bars(self._console)
            found.bars.show(told)

    def end(self, step: int, how: str) -> None:
        """It is over."""
        with self._lock:
            found = self._steps.pop(step)
            if how == ENDED:
                how = "canceled"
            elif how in ("done", "cached"):
                self._done += 1
                self._cached += how == "cached"
            else:
                self._failed.append((found, how))
            word, colour = _SHOWN_AS.get(how, ("ERROR ", "red"))
            self._lines.append(_row(f" => {word}{found.name}", found.began, colour))

    def warn(self, text: str) -> None:
        """Something that the author would want to know."""
        with self._lock:
            self._lines.append(Text(clean(f"crisp: {text}")))

    # The thread that draws

    def _draw(self) -> None:
        with suppress(OSError):  # the terminal has gone
            with Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            ) as live:
                while not self._over.wait(DRAW_SECONDS):
                    self._write_lines()
                    live.update(self._picture(), refresh=True)
                self._write_lines()
            self._console.print(self._total(self._end), no_wrap=True, overflow="crop", crop=True)

    def _write_lines(self) -> None:
        with self._lock:
            lines = [*self._lines]
            self._lines.clear()
        for line in lines:
            self._console.print(line)

    def _total(self, end: str = "") -> RenderableType:
        cached = f", {self._cached} of them cached" if self._cached else ""
        seconds = time.monotonic() - self._began
        return Text(f"[+] Building {seconds:.1f}s ({self._done} done{cached}){end}", no_wrap=True, overflow="crop")

    def _picture(self) -> RenderableType:
        with self._lock:
            rows: list[RenderableType] = [self._total()]
            room = self._console.height - 2 - len(self._steps)
            each = max(0, min(LAST_LINES, room // max(1, len(self._steps))))
            for step in self._steps.values():
                rows.append(_row(f" => {step.name}", step.began, ""))
                if step.bars is not None:
                    rows.append(step.bars.picture(max(1, room)))
                for line in step.last_lines(each):
                    rows.append(Text(f" => => # {line}", style="dim", no_wrap=True, overflow="crop"))
            return Group(*rows)


def _row(text: str, began: float, colour: str) -> RenderableType:
    """With its seconds at the right edge."""
    row = Table.grid(expand=True, padding=0)
    row.add_column(ratio=1, no_wrap=True, overflow="crop")
    row.add_column(justify="right", no_wrap=True)
    row.add_row(Text(text, style=colour), Text(f" {time.monotonic() - began:.1f}s", style=colour))
    return row


def _text(line: bytes) -> str:
    """A line of output, without what a terminal would obey."""
    return clean(_ESCAPES.sub(b"", line).decode(errors="replace").expandtabs(), lines=False)


def _print_output(step: _Step) -> None:
    """All that is kept of it."""
    step.cut()
    if not step.output:
        return
    click.echo(f"------\n > {step.name}:", err=True)
    if step.left_out:
        click.echo(f"(the first {step.left_out} bytes are left out)", err=True)
    for line in bytes(step.output).rstrip(b"\n").split(b"\n"):
        click.echo(_text(line.rstrip(b"\r")), err=True)
    click.echo("------", err=True)
