"""seccomp profiles in JSON: the OCI runtime specification's, and those of docker and containers-common.

The latter have a few more words, which are worked out here, because OCI runtimes do not know them:

    archMap                       architectures by the machine's own; counts where `architectures` is absent
    defaultErrno, errno           names of error numbers
    name                          of a single system call, before there was `names`
    includes, excludes            a rule for containers with certain capabilities, or for certain machines or kernels
    comment                       and every other key: nobody reads it

A Localhost profile is read for each container; a file of this format can also be the node's RuntimeDefault.
"""

from __future__ import annotations

import errno
import os
import platform
import re
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

ACTIONS: Final = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY")
)
OPERATORS: Final = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
MAX_ARGUMENT: Final = 5
"""System calls have six arguments (OCI runtime spec, config-linux.md "Seccomp")."""

GO_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
"""Machines whose name in a profile's conditions is another."""
NATIVE: Final = {
    "x86_64": "SCMP_ARCH_X86_64",
    "aarch64": "SCMP_ARCH_AARCH64",
    "armv7l": "SCMP_ARCH_ARM",
    "i686": "SCMP_ARCH_X86",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
    "riscv64": "SCMP_ARCH_RISCV64",
}


def profile(document: Any, place: str, capabilities: frozenset[str]) -> dict[str, Any]:
    """The OCI configuration's `seccomp` object for a container with these capabilities.

    INVALID_ARGUMENT names `place` and what is wrong there.
    """
    if not isinstance(document, dict):
        raise invalid(f"{place} is no JSON object")
    found: dict[str, Any] = {"defaultAction": _one_of(document, "defaultAction", ACTIONS, place)}
    number = _error_number(document, "defaultErrno", "defaultErrnoRet", place)
    if number is not None:
        found["defaultErrnoRet"] = number
    if architectures := _texts(document, "architectures", place) or _architectures_of_map(document, place):
        found["architectures"] = architectures
    if flags := _texts(document, "flags", place):
        found["flags"] = flags
    for key in ("listenerPath", "listenerMetadata"):
        if document.get(key):
            found[key] = _text(document, key, place)
    rules = [
        _rule(rule, f"{place}: syscalls[{n}]", capabilities) for n, rule in enumerate(_list(document, "syscalls", place))
    ]
    if "syscalls" in document:
        found["syscalls"] = [rule for rule in rules if rule is not None]
    return found


def _architectures_of_map(document: Mapping[str, Any], place: str) -> list[str]:
    for entry in _list(document, "archMap", place):
        if isinstance(entry, dict) and entry.get("architecture") == NATIVE.get(platform.machine()):
            return [entry["architecture"], *_texts(entry, "subArchitectures", f"{place}: archMap")]
    return []


def _rule(rule: Any, place: str, capabilities: frozenset[str]) -> dict[str, Any] | None:
    """One rule; None if it is not for this container on this machine, or for an empty list of calls, as tools write it."""
    if not isinstance(rule, dict):
        raise invalid(f"{place} is no JSON object")
    names = _texts(rule, "names", place)
    if rule.get("name"):
        names.append(_text(rule, "name", place))
    if not names and rule.get("names") is None:
        raise invalid(f"{place} names no system call")
    found: dict[str, Any] = {"names": names, "action": _one_of(rule, "action", ACTIONS, place)}
    number = _error_number(rule, "errno", "errnoRet", place)
    if number is not None:
        found["errnoRet"] = number
    if arguments := [_argument(entry, f"{place}: args") for entry in _list(rule, "args", place)]:
        found["args"] = arguments
    included, excluded = (_conditions(rule, key, place) for key in ("includes", "excludes"))
    capable, machine = _holds(included, capabilities, place)
    if (included.get("caps") and not capable) or (included.get("arches") and not machine) or not _kernel(included, place):
        return None
    capable, machine = _holds(excluded, capabilities, place)
    if not names or capable or machine or (excluded.get("minKernel") and _kernel(excluded, place)):
        return None
    return found


def _conditions(rule: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    conditions = rule.get(key) or {}
    if not isinstance(conditions, dict):
        raise invalid(f"{place}: {key} is no JSON object")
    return {name: value for name, value in conditions.items() if value}


def _holds(conditions: Mapping[str, Any], capabilities: frozenset[str], place: str) -> tuple[bool, bool]:
    """Whether the container has one of the capabilities, and whether this is one of the machines."""
    machine = platform.machine()
    return (
        bool(capabilities.intersection(_texts(conditions, "caps", place))),
        GO_ARCHITECTURES.get(machine, machine) in _texts(conditions, "arches", place),
    )


def _kernel(conditions: Mapping[str, Any], place: str) -> bool:
    """Whether the kernel is at least as new as `minKernel` ("4.8"); without one it is."""
    wanted = conditions.get("minKernel")
    if not wanted:
        return True
    if not isinstance(wanted, str) or not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", wanted, re.ASCII):
        raise invalid(f"{place}: minKernel {wanted!r} is no version of the form 4.8")
    running = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return running is None or (int(running[1]), int(running[2])) >= tuple(map(int, wanted.split(".")))


def _argument(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise invalid(f"{place}: an entry is no JSON object")
    found = {key: _number(entry, key, place) for key in ("index", "value", "valueTwo") if entry.get(key) is not None}
    if found.setdefault("index", 0) > MAX_ARGUMENT:
        raise invalid(f"{place}: index {found['index']} is above {MAX_ARGUMENT}")
    return {"value": 0, **found, "op": _one_of(entry, "op", OPERATORS, place)}


def _error_number(fields: Mapping[str, Any], name: str, number: str, place: str) -> int | None:
    """By name, which counts where both are given, as containers-common has it; or by number."""
    if fields.get(name):
        text = _text(fields, name, place)
        value = getattr(errno, text, None)
        if not text.startswith("E") or not isinstance(value, int):
            raise invalid(f"{place}: {name} {text!r} is the name of no error")
        return value
    return _number(fields, number, place) if fields.get(number) is not None else None


def _number(fields: Mapping[str, Any], key: str, place: str) -> int:
    value = fields[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise invalid(f"{place}: {key} must be a number from 0 to 2**64 - 1")
    return value


def _text(fields: Mapping[str, Any], key: str, place: str) -> str:
    value = fields[key]
    if not isinstance(value, str):
        raise invalid(f"{place}: {key} must be text")
    return value


def _list(fields: Mapping[str, Any], key: str, place: str) -> list[Any]:
    value = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(f"{place}: {key} must be a list")
    return value


def _texts(fields: Mapping[str, Any], key: str, place: str) -> list[str]:
    found = _list(fields, key, place)
    if not all(isinstance(text, str) for text in found):
        raise invalid(f"{place}: {key} must be a list of texts")
    return list(found)


def _one_of(fields: Mapping[str, Any], key: str, known: frozenset[str], place: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or value not in known:
        raise invalid(f"{place}: {key} must be one of {', '.join(sorted(known))}")
    return value
