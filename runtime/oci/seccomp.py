"""seccomp profiles: RuntimeDefault, Localhost, Unconfined (OCI runtime spec, config-linux.md "Seccomp")."""

from __future__ import annotations

import functools
import json
import os
import platform
import tomllib
from pathlib import Path
from typing import Any, Final

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid

DEFAULT_PROFILE: Final = Path(__file__).with_name("seccomp_default.toml")

PROFILE_BYTES: Final = 1024 * 1024
"""Bound of a Localhost profile."""

ARCHITECTURES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}

COMPARISONS: Final = {"below": "SCMP_CMP_LT", "equal": "SCMP_CMP_EQ", "above": "SCMP_CMP_GT"}

KNOWN_KEYS: Final = frozenset(
    (
        "defaultAction",
        "defaultErrnoRet",
        "architectures",
        "archMap",
        "flags",
        "listenerPath",
        "listenerMetadata",
        "syscalls",
    )
)


@functools.cache
def _load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def runtime_default(capabilities: frozenset[str], profile: Path = DEFAULT_PROFILE) -> dict[str, Any]:
    """The default profile for a container with these capabilities, on this machine."""
    document = _load(profile)
    machine = platform.machine()
    syscalls: list[dict[str, Any]] = []
    for group in document["group"]:
        if "machines" in group and machine not in group["machines"]:
            continue
        if "capabilities" in group and not capabilities.intersection(group["capabilities"]):
            continue
        if capabilities.intersection(group.get("without_capabilities", ())):
            continue
        names = group["names"].split()
        rule = {"names": names, "action": "SCMP_ACT_ALLOW"}
        conditions = _conditions(group)
        syscalls += [{**rule, "args": [condition]} for condition in conditions] if conditions else [rule]
    if "CAP_SYS_ADMIN" not in capabilities:
        syscalls.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})  # ENOSYS
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": document["errno"],
        "architectures": list(ARCHITECTURES.get(machine, ())),
        "syscalls": syscalls,
    }


def _conditions(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Rules with several conditions allow the call if any of them holds: one OCI rule for each."""
    for key, operator in COMPARISONS.items():
        if key in group:
            return [{"index": group[key]["index"], "value": group[key]["value"], "op": operator}]
    if "masked_zero" in group:
        test = group["masked_zero"]
        return [{"index": test["index"], "value": test["mask"], "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    if "any_of" in group:
        test = group["any_of"]
        return [{"index": test["index"], "value": value, "op": "SCMP_CMP_EQ"} for value in test["values"]]
    return []


def localhost(reference: str) -> dict[str, Any]:
    """A profile file of the node.

    Raises INVALID_ARGUMENT for a path that is not absolute or a file that is no OCI seccomp profile.
    """
    if not os.path.isabs(reference):
        raise invalid(f"seccomp profile {reference!r}: the path must be absolute")
    try:
        with open(reference, "rb") as file:
            data = file.read(PROFILE_BYTES + 1)
    except OSError as error:
        raise invalid(f"seccomp profile {reference}: {error.strerror}") from None
    if len(data) > PROFILE_BYTES:
        raise invalid(f"seccomp profile {reference} is larger than {PROFILE_BYTES} bytes")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise invalid(f"seccomp profile {reference} is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("defaultAction"), str):
        raise invalid(f"seccomp profile {reference} has no defaultAction")
    if unknown := set(document) - KNOWN_KEYS:
        raise invalid(f"seccomp profile {reference}: unknown keys {', '.join(sorted(unknown))}")
    document.pop("archMap", None)  # Docker's way to write architectures; the OCI runtimes do not read it
    return document


def select(
    context: cri.LinuxContainerSecurityContext,
    capabilities: frozenset[str],
    *,
    available: bool,
    profile: Path = DEFAULT_PROFILE,
) -> dict[str, Any] | None:
    """The profile that a container gets; None for none.

    A field that is absent means Unconfined (api.proto); the deprecated path is read if the field is absent.
    """
    if context.privileged:
        return None
    kind, reference = cri.SecurityProfile.Unconfined, ""
    if context.HasField("seccomp"):
        kind, reference = context.seccomp.profile_type, context.seccomp.localhost_ref
    elif context.seccomp_profile_path in ("runtime/default", "docker/default"):
        kind = cri.SecurityProfile.RuntimeDefault
    elif context.seccomp_profile_path.startswith("localhost/"):
        kind, reference = (
            cri.SecurityProfile.Localhost,
            context.seccomp_profile_path.removeprefix("localhost/"),
        )
    elif context.seccomp_profile_path not in ("", "unconfined"):
        raise invalid(f"seccomp profile {context.seccomp_profile_path!r} is not known")
    if kind == cri.SecurityProfile.Unconfined:
        return None
    if not available:
        name = cri.SecurityProfile.ProfileType.Name(kind)
        raise failed_precondition(f"the kernel has no seccomp filters, and the profile {name} was asked for")
    return localhost(reference) if kind == cri.SecurityProfile.Localhost else runtime_default(capabilities, profile)
