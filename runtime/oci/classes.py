"""Classes of cache, memory bandwidth (RDT) and block I/O, chosen by a pod's annotations as containerd and CRI-O name them.

    rdt.resources.beta.kubernetes.io/container.<container>, …/pod        a control group below /sys/fs/resctrl
    blockio.resources.beta.kubernetes.io/container.<container>, …/pod    a class of `containers.blockio_config_file`:

        Classes: {low: [{Weight: 80, Devices: [/dev/vd*], ThrottleReadBps: 60M, ThrottleWriteIOPS: 200}]}

A class that the host does not have is FAILED_PRECONDITION.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proto.errors import failed_precondition, invalid
from runtime.oci.json_fields import Fields, of_this_node, read_document

if TYPE_CHECKING:
    from collections.abc import Mapping

RDT: Final = "rdt.resources.beta.kubernetes.io/"
BLOCK_IO: Final = "blockio.resources.beta.kubernetes.io/"

RESCTRL: Final = Path("/sys/fs/resctrl")
RDT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Of a control group below it."""

UNITS: Final = {"": 1, "k": 1000, "M": 10**6, "G": 10**9, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}

THROTTLES: Final = {
    "ThrottleReadBps": "throttleReadBpsDevice",
    "ThrottleWriteBps": "throttleWriteBpsDevice",
    "ThrottleReadIOPS": "throttleReadIOPSDevice",
    "ThrottleWriteIOPS": "throttleWriteIOPSDevice",
}

WEIGHTS: Final = range(10, 1001)


def chosen(prefix: str, annotations: Mapping[str, str], container: str) -> str:
    """The class that a pod's annotations name for a container; empty for none."""
    return annotations.get(f"{prefix}container.{container}") or annotations.get(f"{prefix}pod", "")


def require_resctrl(what: str = "RDT", root: Path = RESCTRL) -> None:
    """FAILED_PRECONDITION where the kernel or the processors have no RDT."""
    if not (root / "schemata").exists():
        raise failed_precondition(f"{what} was asked for, but no resctrl file system is mounted at {root}")


def rdt(name: str, root: Path = RESCTRL) -> dict[str, Any]:
    """`linux.intelRdt` for the class."""
    require_resctrl(f"RDT class {name!r}", root)
    if not RDT_NAME.fullmatch(name) or not (root / name / "schemata").exists():
        raise failed_precondition(f"RDT class {name!r} is no control group below {root}")
    return {"closID": name}


def block_io(name: str, path: str) -> dict[str, Any]:
    """`linux.resources.blockIO` for the class. Blocks."""
    if not path:
        message = f"block I/O class {name!r} was asked for, but containers.blockio_config_file is not set on this node"
        raise failed_precondition(message)
    found: dict[str, Any] = {}
    with of_this_node("block I/O classes"):
        fields = Fields(read_document(Path(path)), path)
        classes = fields.inner("Classes")
        fields.finish()
        members = classes.objects(name) if classes is not None else []
        for member in members:
            _add(found, member)
    if not members:
        raise failed_precondition(f"block I/O class {name!r} is not in {path}")
    return found


def _add(found: dict[str, Any], member: Fields) -> None:
    devices = [number for pattern in member.texts("Devices") for number in _devices(pattern)]
    weight = member.scalar("Weight")
    rates = {key: _rate(member, key) for key in THROTTLES}
    member.finish()
    if weight:
        if not weight.isdigit() or int(weight) not in WEIGHTS:
            raise invalid(f"{member.place}: Weight {weight!r} is not between {WEIGHTS.start} and {WEIGHTS.stop - 1}")
        if devices:
            found.setdefault("weightDevice", []).extend({**device, "weight": int(weight)} for device in devices)
        else:
            found["weight"] = int(weight)
    for key, rate in rates.items():
        if rate is not None:
            found.setdefault(THROTTLES[key], []).extend({**device, "rate": rate} for device in devices)


def _rate(member: Fields, key: str) -> int | None:
    text = member.scalar(key)
    if not text:
        return None
    match = re.fullmatch(r"(\d+)([kMG]i?|Ki)?", text)
    if match is None or (unit := match[2] or "") not in UNITS:
        raise invalid(f"{member.place}: {key} {text!r} is not a number with one of {', '.join(UNITS)[2:]}")
    return int(match[1]) * UNITS[unit]


def _devices(pattern: str) -> list[dict[str, int]]:
    """Numbers of the block devices that the pattern matches; one that matches nothing is a host without such a disk."""
    found = []
    for path in sorted(glob.glob(pattern)):
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            found.append({"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)})
    return found
