"""A job for the fork server that never comes back by itself."""

from __future__ import annotations

from typing import Any


def main(args: dict[str, Any], _fds: list[int], _report: Any) -> None:
    with open(args["fifo"]):
        pass
