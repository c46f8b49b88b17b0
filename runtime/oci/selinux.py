"""SELinux labels of a container's process and files (selinux(8), "lxc_contexts" of the policy).

A pod that names no level gets a pair of categories that no other pod has, so that one pod's processes cannot open another
pod's files. Privileged containers run as spc_t, which the policy does not confine.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proto.errors import Code, CrispError

if TYPE_CHECKING:
    from collections.abc import Collection

    from proto import api_pb2 as cri

ETC: Final = Path("/etc/selinux")
CATEGORIES: Final = 1024
"""Of the reference policy; a level names two of them."""
DEFAULT_PROCESS: Final = "system_u:system_r:container_t:s0"
DEFAULT_FILE: Final = "system_u:object_r:container_file_t:s0"
PRIVILEGED_TYPE: Final = "spc_t"
PARTS: Final = 4
"""user:role:type:level; the level may hold colons."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Of one container."""

    process: str
    file: str
    relabel: bool = True
    """Whether volumes may be given `file`: not for who may open everything anyway."""


def policy_defaults(etc: Path = ETC) -> Labels:
    """What the host's policy gives containers; the reference policy's labels where it does not say."""
    process, file = DEFAULT_PROCESS, DEFAULT_FILE
    values = _assignments(etc / "config")
    contexts = _assignments(etc / values.get("SELINUXTYPE", "targeted") / "contexts" / "lxc_contexts")
    return Labels(contexts.get("process", process), contexts.get("file", file))


def _assignments(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().strip('"') for key, _, value in pairs}


def unique_level(taken: Collection[str]) -> str:
    """A level with two categories that is not in `taken`; RESOURCE_EXHAUSTED if all half a million are."""
    if len(taken) >= CATEGORIES * (CATEGORIES - 1) // 2:
        raise CrispError(Code.RESOURCE_EXHAUSTED, "SELinux: every pair of categories is in use by a pod")
    while True:
        first, second = secrets.randbelow(CATEGORIES), secrets.randbelow(CATEGORIES)
        level = f"s0:c{min(first, second)},c{max(first, second)}"
        if first != second and level not in taken:
            return level


def labels(options: cri.SELinuxOption, defaults: Labels, level: str, *, privileged: bool) -> Labels:
    """Labels for a container that asks for `options`, in a pod whose level is `level`."""
    user, role, kind, _ = _split(defaults.process)
    file_user, file_role, file_kind, _ = _split(defaults.file)
    if privileged and not options.type:
        kind = PRIVILEGED_TYPE
    kind = options.type or kind
    level = options.level or ("s0" if privileged else level)
    return Labels(
        process=":".join((options.user or user, options.role or role, kind, level)),
        file=":".join((options.user or file_user, file_role, file_kind, level)),
        relabel=kind != PRIVILEGED_TYPE,
    )


def _split(label: str) -> tuple[str, str, str, str]:
    parts = [*label.split(":", PARTS - 1), "", "", "", ""]
    return parts[0], parts[1], parts[2], parts[3]
