"""`crisp events`, as people read it."""

from __future__ import annotations

from runtime.cli import events


def test_a_name_is_nothing_that_a_terminal_obeys() -> None:
    found = {"time": 0, "event": "created", "kind": "container", "id": "c" * 64, "pod": "a/\x1b[2Jb", "container": "x\ny"}
    assert "\x1b" not in events.line(found)
    assert "\n" not in events.line(found)
