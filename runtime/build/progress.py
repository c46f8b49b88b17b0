"""What a build tells of itself while it goes on; who shows it is the command's business."""

from __future__ import annotations

from typing import Final, Protocol

ENDED: Final = "the build has ended"
"""How a step is over that another one's failure, or a signal, has stopped."""


class Progress(Protocol):
    """Hears of steps, from several threads."""

    def begin(self, name: str) -> int:
        """A step has begun; the number by which it is told of from now on."""
        ...

    def output(self, step: int, line: bytes) -> None:
        """It has printed something: a line or, without a newline at its end, a part of one."""
        ...

    def end(self, step: int, how: str) -> None:
        """It is over: `done`, `cached`, ENDED, or why not."""
        ...

    def warn(self, text: str) -> None:
        """Something that its author would want to know."""
        ...
