"""Words of an instruction, with their quotes and escapes left in them for expansion.py."""

from __future__ import annotations

import json
import re
from typing import Final

SPACE: Final = " \t\v\f\r\n"
_HERE: Final = re.compile(r"([0-9]*)<<(-?)([^<]+)")


def split(text: str, escape: str = "\\") -> list[str]:
    """Splits at white space that is neither quoted nor escaped. An escape at the very end is left out."""
    words: list[str] = []
    word: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == escape and quote != "'":
            if at == len(text):
                break
            word += (character, text[at])
            at += 1
        elif quote:
            word.append(character)
            if character == quote:
                quote = ""
        elif character in SPACE:
            if word:
                words.append("".join(word))
                word = []
        else:
            word.append(character)
            if character in "'\"":
                quote = character
    return [*words, "".join(word)] if word else words


def json_array(text: str) -> list[object] | None:
    """What a text is as a JSON array; None if it is none, such as a shell's `[ -e file ]`."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def here_document(word: str) -> tuple[str, bool, bool] | None:
    """`<<NAME`, `<<-NAME`, `<<"NAME"`: the name, whether tabs go, whether variables are put in. None for other words."""
    match = _HERE.fullmatch(word)
    if match is None or len(split(match[3])) != 1:
        return None
    written = match[3]
    name = unquoted(written)
    return (name, bool(match[2]), name == written) if name else None


def unquoted(text: str) -> str:
    """Without quotes, and without backslashes before what they stand for."""
    return re.sub(r"""\\(.)|['"]""", lambda match: match[1] or "", text)
