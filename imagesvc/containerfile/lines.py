r"""From a Containerfile's bytes to one text for each instruction: directives, comments, continued lines, here-documents.

# escape=`            a directive: only before everything else, known names alone, each once
# a comment           the whole line; between continued lines too
RUN one && \          goes on in the next line
    two
COPY <<EOF /file      goes on up to a line that is EOF
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from imagesvc.containerfile.errors import ContainerfileError, Place
from imagesvc.containerfile.instructions import Directives, HereDocument
from imagesvc.containerfile.words import SPACE, here_document, json_array, split

MAX_BYTES: Final = 4 << 20
"""Of a file."""
_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+)")
_DIRECTIVES: Final = ("syntax", "escape", "check")
_AFTER_OPTIONS: Final = re.compile(r"\A(?:ONBUILD\s+)?\S+\s+(?:--\S+\s+)*", re.IGNORECASE)
_WITH_DOCUMENTS: Final = ("RUN", "COPY", "ADD")


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """An instruction as one line, and the number of its first."""

    number: int
    text: str
    heredocs: tuple[HereDocument, ...]
    raw_heredocs: str
    """The here-documents as they stand in the file, each with its last line; for whoever reads the instruction again."""


@dataclass(frozen=True, slots=True)
class Lines:
    """All of a file."""

    directives: Directives
    lines: tuple[LogicalLine, ...]
    warnings: tuple[str, ...]


def read(data: bytes, name: str) -> Lines:
    """Raises ContainerfileError."""
    if len(data) > MAX_BYTES:
        raise ContainerfileError(Place(name, 1), "", f"it has more than {MAX_BYTES} bytes, which no Containerfile has")
    physical = [line.removesuffix("\r") for line in _text(data, name).split("\n")]
    directives = _directives(physical, name)
    return _Reader(physical, name, directives).all()


def _text(data: bytes, name: str) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ContainerfileError(Place(name, line), "", "it is not text in UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ContainerfileError(Place(name, line), "", "it has a NUL character: it is no text")
    return text


def _directives(physical: list[str], name: str) -> Directives:
    found: dict[str, str] = {}
    for number, line in enumerate(physical, 1):
        match = _DIRECTIVE.fullmatch(line.strip(SPACE))
        key = match[1].lower() if match else ""
        if match is None or key not in _DIRECTIVES:
            break
        value = match[2].rstrip()
        if key in found:
            raise ContainerfileError(Place(name, number), "", f"the directive {key} stands here a second time")
        if key == "escape" and value not in ("\\", "`"):
            raise ContainerfileError(Place(name, number), "", f"escape is to be \\ or `, and is {value!r}")
        found[key] = value
    return Directives(**found)


class _Reader:
    def __init__(self, physical: list[str], name: str, directives: Directives) -> None:
        self._physical = physical
        self._name = name
        self._directives = directives
        self._at = 0
        self._warnings: list[str] = []
        escape = re.escape(directives.escape)
        # The escape character twice is the character itself.
        self._continued = re.compile(rf"(?:(?<=[^{escape}])|^){escape}[ \t]*\Z")

    def all(self) -> Lines:
        lines = []
        while self._at < len(self._physical):
            number = self._at + 1
            text = self._logical()
            if text is not None:
                lines.append(self._with_documents(number, text))
        return Lines(self._directives, tuple(lines), tuple(self._warnings))

    def _logical(self) -> str | None:
        """The next instruction's text; None for an empty line or a comment."""
        first = self._at
        line = self._physical[first].lstrip(SPACE)
        self._at += 1
        if not line or line.startswith("#"):
            return None
        pieces = []
        empty = False
        while self._continued.search(line):
            pieces.append(self._continued.sub("", line))
            line = ""
            while self._at < len(self._physical):
                line = self._physical[self._at]
                self._at += 1
                bare = line.strip(SPACE)
                if bare and not bare.startswith("#"):
                    break
                empty = empty or (not bare and self._at < len(self._physical))
                line = ""
        if empty:
            self._warnings.append(
                f"{Place(self._name, first + 1)}: there is an empty line in its middle: take it out, or end the line above"
            )
        text = ("".join(pieces) + line).strip(SPACE)
        return text or None

    def _with_documents(self, number: int, text: str) -> LogicalLine:
        found, raw = [], []
        for word in _document_words(text, self._directives.escape):
            name, chomp, expand = word
            content, written = self._document(number, text, name, chomp)
            found.append(HereDocument(name, content, expand))
            raw.append(written)
        return LogicalLine(number, text, tuple(found), "".join(raw))

    def _document(self, number: int, text: str, name: str, chomp: bool) -> tuple[str, str]:
        """A here-document: what is in it, and how it stands there."""
        content: list[str] = []
        raw: list[str] = []
        while self._at < len(self._physical):
            line = self._physical[self._at]
            self._at += 1
            raw.append(line + "\n")
            if chomp:
                line = line.lstrip("\t")
            if line == name:
                return "".join(content), "".join(raw)
            content.append(line + "\n")
        keyword = text.split(None, 1)[0].upper()
        raise ContainerfileError(
            Place(self._name, number),
            keyword,
            f"the here-document {name} has no end: a line is to be {name} and nothing else",
        )


def _document_words(text: str, escape: str) -> list[tuple[str, bool, bool]]:
    words = split(text, escape)
    if words and words[0].upper() == "ONBUILD":
        words = words[1:]
    if not words or words[0].upper() not in _WITH_DOCUMENTS:
        return []
    if json_array(_AFTER_OPTIONS.sub("", text)) is not None:
        return []
    return [found for word in words[1:] if (found := here_document(word)) is not None]
