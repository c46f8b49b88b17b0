"""Detach keys: how they are written, and what of the input is passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import CrispError
from runtime.streaming.detach_keys import DEFAULT, DetachKeys, parse


def test_how_they_are_written() -> None:
    assert parse(DEFAULT) == b"\x10\x11"
    assert parse("ctrl-@,a,ctrl-_,CTRL-A") == b"\x00a\x1f\x01"
    assert parse("") == b""
    for text in ("ctrl-", "ctrl-pq", "ctrl-1", "ab", ",", "ctrl-p,", "é"):
        with pytest.raises(CrispError, match=f"^{text}"):
            parse(text)


@given(st.lists(st.sampled_from([b"", b"\x10", b"\x11", b"\x10\x10", b"a", b"\x10a\x10\x11", b"b\x10"])), st.data())
def test_what_is_passed_on_is_all_before_the_keys_in_whatever_pieces_it_comes(
    pieces: list[bytes], data: st.DataObject
) -> None:
    keys = data.draw(st.sampled_from([b"\x10\x11", b"\x10\x10\x11", b"a", b""]))
    whole, watching = b"".join(pieces), DetachKeys(keys)
    passed = b"".join(map(watching.feed, pieces))
    before, found, _ = whole.partition(keys) if keys else (whole, b"", b"")
    assert watching.pressed == bool(found)
    if found:
        assert passed == before
    else:
        held = whole.removeprefix(passed)
        assert passed + held == whole
        assert not held or (keys.startswith(held) and held != keys)
