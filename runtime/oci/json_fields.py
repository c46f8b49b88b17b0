"""Strict reading of administrators' JSON and YAML objects: wrong types and unknown keys are errors that name their place."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from proto.errors import Code, CrispError, failed_precondition, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T = TypeVar("T")

FILE_BYTES: Final = 1024 * 1024


def read_bytes(path: Path) -> bytes:
    """A file of at most FILE_BYTES; INVALID_ARGUMENT says why it cannot be had."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise invalid(f"{path}: {error.strerror}") from None
    if len(data) > FILE_BYTES:
        raise invalid(f"{path} is larger than {FILE_BYTES} bytes")
    return data


def read_document(path: Path) -> Any:
    """A file of at most FILE_BYTES: JSON if its name says so, else YAML. INVALID_ARGUMENT says why it cannot be had."""
    data = read_bytes(path)
    if path.suffix == ".json":
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise invalid(f"{path} is not JSON: {error}") from None
    import yaml  # noqa: PLC0415  a node without YAML files does not pay for it

    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise invalid(f"{path} is not YAML: {error}") from None


@contextmanager
def of_this_node(what: str) -> Iterator[None]:
    """FAILED_PRECONDITION in place of INVALID_ARGUMENT: who asks for a container has not written the node's files."""
    try:
        yield
    except CrispError as error:
        if error.code is not Code.INVALID_ARGUMENT:
            raise
        raise failed_precondition(f"{what} of this node: {error.message}") from error


class Fields:
    """One object, read key by key. Every method raises INVALID_ARGUMENT with the place and the key."""

    def __init__(self, document: Any, place: str) -> None:
        """`place` is what stands before the key in messages: a file, then the keys that led here."""
        if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
            raise invalid(f"{place} must be an object")
        self.place = place
        self._document = document
        self._unread = set(document)

    def _get(self, key: str, kind: type[T], name: str) -> T | None:
        self._unread.discard(key)
        value = self._document.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid(f"{self.place}: {key} must be {name}")
        return value

    def text(self, key: str) -> str:
        """A string; empty if it is not there."""
        return self._get(key, str, "a string") or ""

    def required(self, key: str) -> str:
        """A string that must be there."""
        if not (value := self.text(key)):
            raise invalid(f"{self.place}: {key} is missing")
        return value

    def scalar(self, key: str) -> str:
        """A string or an integer, as text; empty if it is not there."""
        value = self._get(key, object, "")
        if value is not None and (not isinstance(value, str | int) or isinstance(value, bool)):
            raise invalid(f"{self.place}: {key} must be a string or an integer")
        return "" if value is None else str(value)

    def number(self, key: str) -> int | None:
        """An integer."""
        return self._get(key, int, "an integer")

    def flag(self, key: str) -> bool | None:
        """A truth value."""
        return self._get(key, bool, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings."""
        values = self._get(key, list, "an array of strings") or []
        if not all(isinstance(value, str) for value in values):
            raise invalid(f"{self.place}: {key} must be an array of strings")
        return tuple(values)

    def numbers(self, key: str) -> tuple[int, ...]:
        """An array of integers."""
        values = self._get(key, list, "an array of integers") or []
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise invalid(f"{self.place}: {key} must be an array of integers")
        return tuple(values)

    def table(self, key: str) -> dict[str, str]:
        """An object of strings."""
        values = self._get(key, dict, "an object of strings") or {}
        if not all(isinstance(part, str) for item in values.items() for part in item):
            raise invalid(f"{self.place}: {key} must be an object of strings")
        return values

    def inner(self, key: str) -> Fields | None:
        """An object."""
        value = self._get(key, dict, "an object")
        return None if value is None else Fields(value, f"{self.place}: {key}")

    def objects(self, key: str) -> list[Fields]:
        """An array of objects."""
        values = self._get(key, list, "an array") or []
        return [Fields(value, f"{self.place}: {key}[{index}]") for index, value in enumerate(values)]

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return self._document.get(key) is not None

    def finish(self) -> None:
        """Nothing else may be in it."""
        if self._unread:
            raise invalid(f"{self.place}: unknown {', '.join(sorted(self._unread))}")
