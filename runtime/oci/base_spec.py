"""A handler's base specification: an OCI configuration whose parts lie beneath what crisp makes of a request.

    objects       key by key; where both have a value, crisp's counts
    process.env   crisp's variables replace the base's of the same name
    process.rlimits, mounts, linux.devices   by type, destination, path: what was asked for replaces the base's, which
                  replace crisp's defaults
    hooks, linux.resources.devices           the base's first, then crisp's
    other arrays  crisp's if there is one

What identifies the container (root, cgroup, namespaces, arguments, user) is always crisp's, because it always is there.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid
from runtime.config.ulimits import Ulimit
from runtime.oci.hooks import STAGES
from runtime.oci.json_fields import of_this_node, read_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS: Final = frozenset(("ociVersion", "process", "root", "hostname", "mounts", "annotations", "hooks", "linux"))


def load(path: Path) -> dict[str, Any]:
    """Read and check the file; FAILED_PRECONDITION names it. Blocks."""
    with of_this_node("the base specification"):
        return _checked(read_document(path), path)


def _checked(document: Any, path: Path) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("ociVersion"), str):
        raise invalid(f"{path} is no OCI configuration: ociVersion is missing")
    if unknown := set(document) - KEYS:
        raise invalid(f"{path}: unknown {', '.join(sorted(unknown))}")
    for key in ("process", "annotations", "hooks", "linux"):
        if not isinstance(document.get(key, {}), dict):
            raise invalid(f"{path}: {key} must be an object")
    if not isinstance(document.get("mounts", []), list):
        raise invalid(f"{path}: mounts must be an array")
    if unknown := set(document.get("hooks", {})) - set(STAGES):
        raise invalid(f"{path}: unknown hooks {', '.join(sorted(unknown))}")
    for mount in document.get("mounts", []):
        if not isinstance(mount, dict) or not isinstance(mount.get("destination"), str):
            raise invalid(f"{path}: each mount must be an object with a destination")
        mount.setdefault("options", [])
    for limit in document.get("process", {}).get("rlimits", []):
        if not isinstance(limit, dict) or {k: type(v) for k, v in limit.items()} != {"type": str, "soft": int, "hard": int}:
            raise invalid(f"{path}: each of process.rlimits must have type, soft and hard")
    return {key: value for key, value in document.items() if key not in ("ociVersion", "root", "hostname")}


def rlimits(base: dict[str, Any]) -> dict[str, Ulimit]:
    """The base's limits, which take the place of crisp's defaults."""
    found = base.get("process", {}).get("rlimits", [])
    return {limit["type"].removeprefix("RLIMIT_").lower(): Ulimit(limit["soft"], limit["hard"]) for limit in found}


def lay_over(base: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` on `base`: see the module's docstring."""
    return _merge(copy.deepcopy(base), spec, "")


def _merge(base: dict[str, Any], over: dict[str, Any], place: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        here, below = f"{place}.{key}".lstrip("."), base.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merge(below, value, here)
        elif isinstance(value, list) and isinstance(below, list) and (join := _JOINS.get(here)):
            merged[key] = join(below, value)
        else:
            merged[key] = value
    return merged


def _by(name: Callable[[Any], Any]) -> Callable[[list[Any], list[Any]], list[Any]]:
    def join(below: list[Any], over: list[Any]) -> list[Any]:
        taken = {name(item) for item in over}
        return [item for item in below if name(item) not in taken] + over

    return join


def _append(below: list[Any], over: list[Any]) -> list[Any]:
    return below + over


_JOINS: Final = {
    "process.env": _by(lambda entry: entry.partition("=")[0]),
    "process.rlimits": _by(lambda limit: limit["type"]),
    "linux.devices": _by(lambda device: device["path"]),
    # The first rule denies everything: what the base allows has to come after it.
    "linux.resources.devices": lambda below, over: over[:1] + below + over[1:],
    **{f"hooks.{stage}": _append for stage in STAGES},
}
