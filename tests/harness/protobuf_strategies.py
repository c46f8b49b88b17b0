"""Hypothesis strategies of protobuf messages, made of their descriptors: whatever a peer could send that parses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

TEXTS = st.sampled_from(
    ["", "-", "a", "-a", "b", "-b", "/a", "-/a", "A=1", "0-1", "\0", "é", "../x", "network", "x.y"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}


def messages(kind: type[Message], *, entries: int = 3) -> st.SearchStrategy[Any]:
    """Messages of this type; each field may be set, lists have up to so many entries."""
    return _documents(kind.DESCRIPTOR, entries).map(lambda fields: kind(**fields))


def _documents(descriptor: Descriptor, entries: int) -> st.SearchStrategy[dict[str, Any]]:
    optional = {field.name: _field(field, entries) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=optional)


def _field(field: FieldDescriptor, entries: int) -> st.SearchStrategy[Any]:
    one = field.message_type
    if one is not None and one.GetOptions().map_entry:
        keys, values = (_single(one.fields_by_name[name], entries) for name in ("key", "value"))
        return st.dictionaries(keys, values, max_size=entries)
    return st.lists(_single(field, entries), max_size=entries) if field.is_repeated else _single(field, entries)


def _single(field: FieldDescriptor, entries: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _documents(field.message_type, entries)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(-1, 99)
    if field.type == field.TYPE_STRING:
        return TEXTS
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    names = {field.TYPE_INT32: "int32", field.TYPE_INT64: "int64", field.TYPE_UINT32: "uint32", field.TYPE_UINT64: "uint64"}
    least, most = RANGES[names[field.type]]
    return st.sampled_from([least, 0, 1, most]) | st.integers(least, most)


def filled(kind: type[Message]) -> list[tuple[str, Any]]:
    """For each field of this type and of the types within, a message with that field alone; by the field's path."""
    return [(path, kind(**document)) for path, document in _leaves(kind.DESCRIPTOR)]


def _leaves(descriptor: Descriptor) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for field in descriptor.fields:
        for path, value in _values(field):
            found.append((f"{field.name}{path}", {field.name: value}))
    return found


def _values(field: FieldDescriptor) -> list[tuple[str, Any]]:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        value = inner.fields_by_name["value"]
        return [("", {"key": found}) for _, found in _values(value)][-1:]
    if inner is not None:
        leaves = [(f".{path}", value) for path, value in _leaves(inner)]
        return [(path, [value]) for path, value in leaves] if field.is_repeated else leaves
    if field.enum_type is not None:
        one: Any = field.enum_type.values[-1].number
    else:
        one = {field.TYPE_STRING: "text", field.TYPE_BOOL: True}.get(field.type, 7)
    return [("", [one] if field.is_repeated else one)]
