"""The configuration as JSON: what holds a zero byte is named, and never shown."""

from __future__ import annotations

from typing import Any

import pytest

from proto.errors import Code, CrispError
from runtime.oci import document


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"process": {"cwd": "/", "args": ["sh", "secret\0"]}}, "process.args[1]"),
        ({"process": {"args": ["fine"], "env": ["A=1", "TOKEN=secret\0"]}}, "process.env[1] (TOKEN)"),
        ({"hostname": "fine", "annotations": {"a": "fine", "b": "secret\0"}}, "annotations.b"),
        ({"annotations": {"secret\0": "x"}}, "a key of annotations"),
    ],
)
def test_a_zero_byte(wrong: dict[str, Any], place: str) -> None:
    with pytest.raises(CrispError) as caught:
        document.encode(wrong)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"{place} holds a zero byte"


def test_what_is_no_text_is_replaced() -> None:
    assert document.encode({"a": "\udc80", "b": [1, None, "ä"]}) == '{"a": "\ufffd", "b": [1, null, "ä"]}'.encode()
