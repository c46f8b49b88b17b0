"""Names on a terminal: anybody who talks to the socket may have given them."""

from __future__ import annotations

import os

import pytest

from runtime.cli import events, listing


def test_an_event() -> None:
    found = {"time": 0, "event": "created", "kind": "container", "id": "c" * 64, "pod": "a/\x1b[2Jb", "container": "x\ny"}
    assert "\x1b" not in events.line(found)
    assert "\n" not in events.line(found)


def test_a_field_of_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"Name": "a\x1b[2J"}
    assert listing.parse("{{.Name}}").fill(row) == "a\x1b[2J"
    monkeypatch.setattr(os, "isatty", lambda _fd: True)
    assert "\x1b" not in listing.parse("{{.Name}}").fill(row)
