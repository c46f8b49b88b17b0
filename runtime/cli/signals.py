"""Signals that end the command: what it has begun is put in order before it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INSISTED: Final = 3
"""Signals after which nothing is put in order any more, as docker has it: what is waited for may hang."""


class Signalled(KeyboardInterrupt):
    """Somebody wants the command to end. An event loop lets no other exception out of whatever it is doing."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Signals that end programs end the pod as well, whatever is being done: nothing of it may stay behind."""

    def __init__(self) -> None:
        self._held = False
        self._first = self._count = 0

    def _tell(self, number: int, _frame: object) -> None:
        self._count += 1
        self._first = self._first or number
        if not self._held or self._count >= INSISTED:
            raise Signalled(number)

    @contextmanager
    def told(self) -> Iterator[Signals]:
        """Raise Signalled where one comes; the command then ends as one does that a signal has killed."""
        # What was ignored from the beginning stays so: `nohup`, and what a shell runs behind.
        heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._tell) for number in heard}
        try:
            yield self
        except Signalled as signalled:
            if self._count >= INSISTED:
                sys.stderr.write("crisp: ended in the middle: `crisp pod ls` shows what is left\n")
            raise SystemExit(128 + signalled.number) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Tell of them at the end: meanwhile something is made that has to be known first."""
        with self.noted():
            yield
        self.tell()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Raise nothing: `first` says which has come, and who asks for it does what is to be done."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @property
    def first(self) -> int:
        """The first one that has come, 0 for none."""
        return self._first

    def tell(self) -> None:
        """Raise Signalled if one has been noted."""
        if self._first:
            raise Signalled(self._first)

    def ignore(self) -> None:
        """The pod is being removed already, and that takes as long as it takes."""
        self._held = True
