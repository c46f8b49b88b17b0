"""Exit codes: 1 where a command has failed, 2 for what was typed wrongly, docker's where a container's own is passed on.

125    crisp has failed, or was told what it cannot do
126    the container's command cannot be run
127    it is not there
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

MISUSED: Final = 2
FAILED: Final = 125
CANNOT_RUN: Final = 126
NOT_THERE: Final = 127


class MisuseError(SystemExit):
    """The end of a command that was told what it cannot do; it was said why."""


class PassesOn(click.Command):
    """A command that ends with the exit code of a container's, which may be 2 as well."""

    def make_context(self, *words: Any, **named: Any) -> click.Context:
        """Reads the words."""
        with _told_apart():
            return super().make_context(*words, **named)

    def invoke(self, context: click.Context) -> Any:
        """Does it."""
        with _told_apart():
            return super().invoke(context)


@contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.show()
        raise SystemExit(FAILED) from None
    except MisuseError:
        raise SystemExit(FAILED) from None
