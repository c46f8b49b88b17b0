"""What the command writes: a progress bar on a terminal, plain lines otherwise; tables; errors."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import click

from proto.errors import CrispError
from runtime.cli.exit_codes import CANNOT_RUN, MISUSED, NOT_THERE, MisuseError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

    from proto import admin_pb2 as admin


_OF_COMMAND: Final = re.compile(r'(?:^|: )exec: ".*?": (executable file not found|no such file)?', re.DOTALL)
"""How the daemon speaks of the command that a container was to run, and of nothing else that is not there."""

_CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160), *range(0xD800, 0xE000)), "?")
_CONTROLS_OF_LINES: Final = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\t\n"}


NARROW: Final = 70
"""Columns that a terminal has at least for speeds beside the bars."""


def clean(text: str, *, lines: bool = True) -> str:
    """Without what a terminal would obey: names and messages may be a container's. `lines`: it may have several."""
    return text.translate(_CONTROLS_OF_LINES if lines else _CONTROLS)


def say_name(text: str) -> None:
    """A line that has a container's file name in it: byte for byte, but not on a terminal."""
    click.echo(clean(text, lines=False) if os.isatty(1) else os.fsencode(text))


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with an error."""
    click.echo(clean(f"crisp: {message}"), err=True)
    raise MisuseError(code) if code == MISUSED else SystemExit(code)


@contextmanager
def errors(code: int = 1) -> Iterator[None]:
    """Turn errors of calls into one line and this exit code; of what is read and written here, into 1."""
    try:
        yield
    except CrispError as error:
        fail(error.message, code)
    except BrokenPipeError:
        raise SystemExit(128 + signal.SIGPIPE) from None  # nobody reads any more, and nobody needs to be told
    except UnicodeEncodeError as error:
        fail(f"{ascii(error.object)[:100]} is not text in UTF-8", 2)
    except OSError as error:
        fail(f"{error.strerror}: {error.filename}" if error.filename else f"cannot read or write: {error.strerror}")


@contextmanager
def commands_failure() -> Iterator[None]:
    """What keeps a container's command from running has exit codes of its own, as in shells and in docker."""
    try:
        yield
    except CrispError as error:
        if found := _OF_COMMAND.search(error.message):
            fail(error.message, NOT_THERE if found[1] else CANNOT_RUN)
        raise


def need_terminal(*, stdin: bool, tty: bool) -> None:
    """End the command if a terminal of a container's is to get the input of something else: it would wait for its end."""
    if stdin and tty and not os.isatty(0):
        fail("the input is not a terminal: leave out -t, or -i")


def show(steps: Iterable[admin.ImageProgress], *, quiet: bool = False) -> list[str]:
    """Follow a longer piece of work to its end, and say what it was in all; the ids of the images it made."""
    if quiet:
        return [made for step in steps if step.done for made in step.image_ids]
    began, last = time.monotonic(), dict[str, "admin.ImageProgress"]()

    def seen() -> Iterator[admin.ImageProgress]:
        for step in steps:
            if not step.done:
                last[step.item] = step
            yield step

    made = _bars(seen()) if sys.stderr.isatty() else _lines(seen())
    reused = [step for step in last.values() if step.stage == "exists"]
    moved = sum(step.total for step in last.values()) - sum(step.total for step in reused)
    were = f", {len(reused)} of {len(last)} layers were there" if reused else ""
    click.echo(f"{size(moved)} in {time.monotonic() - began:.1f} s{were}", err=True)
    return made


def _lines(steps: Iterable[admin.ImageProgress]) -> list[str]:
    last: dict[str, str] = {}
    for step in steps:
        if step.done:
            return list(step.image_ids)
        if last.get(step.item) != step.stage:
            last[step.item] = step.stage
            size = f" {step.total} bytes" if step.total else ""
            click.echo(f"{short(step.item)}: {step.stage}{size}", err=True)
    return []


def _bars(steps: Iterable[admin.ImageProgress]) -> list[str]:
    from rich.console import Console  # noqa: PLC0415  only where a person looks on

    bars = Bars(Console(stderr=True))
    with bars.progress:
        for step in steps:
            if step.done:
                return list(step.image_ids)
            bars.show(step)
    return []


class Bars:
    """A bar for each layer of an image that comes or goes."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

        columns = [TextColumn("{task.description}"), TextColumn("{task.fields[stage]:<12}"), BarColumn()]
        if console.width >= NARROW:
            columns += [DownloadColumn(), TransferSpeedColumn()]
        self.progress = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def show(self, step: admin.ImageProgress) -> None:
        """So far it is."""
        if step.done:
            return
        if step.item not in self._tasks:
            self._tasks[step.item] = self.progress.add_task(short(step.item), total=step.total or None, stage=step.stage)
        self.progress.update(self._tasks[step.item], completed=step.current, total=step.total or None, stage=step.stage)

    def picture(self, rows: int) -> RenderableType:
        """Those that are not finished, as many as there is room for."""
        tasks = [task for task in self.progress.tasks if not task.finished] or self.progress.tasks
        return self.progress.make_tasks_table(tasks[:rows])


def short(text: str) -> str:
    """A digest's first twelve digits; anything else as it is."""
    return text.removeprefix("sha256:")[:12] if text.startswith("sha256:") else text


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell."""
    rows = [tuple(clean(cell, lines=False) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age(nanoseconds: int, now: int) -> str:
    """How long ago, for people."""
    seconds = max(0, (now - nanoseconds) // 1_000_000_000)
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // length} {unit}"
    return f"{seconds // 86400} d"
