"""Keys that leave a terminal and what runs at its other end: `ctrl-p,ctrl-q`, as docker and podman write them.

What begins them is held back until it is clear that the rest does not follow.
"""

from __future__ import annotations

from typing import Final

from proto.errors import invalid

DEFAULT: Final = "ctrl-p,ctrl-q"

_CONTROLS: Final = "@abcdefghijklmnopqrstuvwxyz[\\]^_"
"""In the order of their codes."""


def parse(text: str) -> bytes:
    """The bytes that these keys send; none for no text. INVALID_ARGUMENT for what no terminal sends."""
    return bytes(_code(key, text) for key in text.split(",")) if text else b""


def _code(key: str, text: str) -> int:
    if len(key) == 1 and key.isascii():
        return ord(key)
    letter = key.lower().removeprefix("ctrl-")
    if len(letter) != 1 or letter not in _CONTROLS:
        raise invalid(f"{text}: {key!r} is neither a character nor ctrl- with one of a-z @ [ \\ ] ^ _")
    return _CONTROLS.index(letter)


class DetachKeys:
    """Watches input for the keys."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0
        """How many of the keys came last."""
        self.pressed = False

    def feed(self, data: bytes) -> bytes:
        """What of the input is to be passed on now. Nothing more once the keys were pressed."""
        if not self._keys:
            return data
        passed = bytearray()
        for code in data:
            if self.pressed:
                break
            seen = self._keys[: self._held] + bytes((code,))
            # The longest end of what came that may be the keys' beginning.
            self._held = next(n for n in range(len(seen), -1, -1) if self._keys.startswith(seen[len(seen) - n :]))
            passed += seen[: len(seen) - self._held]
            self.pressed = self._held == len(self._keys)
        return bytes(passed)
