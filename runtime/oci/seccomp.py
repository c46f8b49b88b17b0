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
from runtime.oci import seccomp_json
from runtime.oci.json_fields import read_bytes

DEFAULT_PROFILE: Final = Path(__file__).with_name("seccomp_default.toml")

ARCHITECTURES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}

COMPARISONS: Final = {"below": "SCMP_CMP_LT", "equal": "SCMP_CMP_EQ", "above": "SCMP_CMP_GT"}


def check(profile: str) -> None:
    """Raise INVALID_ARGUMENT if the file that the configuration names as RuntimeDefault cannot be one."""
    if profile:
        runtime_default(frozenset(), Path(profile))


def runtime_default(capabilities: frozenset[str], profile: Path = DEFAULT_PROFILE) -> dict[str, Any]:
    """The default profile for a container with these capabilities, on this machine.

    The file is crisp's own format (seccomp_default.toml), or JSON as docker's, Podman's and CRI-O's.
    """
    place = f"seccomp profile {profile}"
    data = read_bytes(profile)
    if data.lstrip().startswith(b"{"):
        return seccomp_json.profile(_json(data, place), place, capabilities)
    try:
        return _of_groups(_toml(data), capabilities)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise invalid(f"{place} is neither JSON nor crisp's own format: {error!r}") from None


def _json(data: bytes, place: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{place} is not JSON: {error}") from None


@functools.lru_cache(4)
def _toml(data: bytes) -> dict[str, Any]:
    return tomllib.loads(data.decode("utf-8"))


def _of_groups(document: dict[str, Any], capabilities: frozenset[str]) -> dict[str, Any]:
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


def localhost(reference: str, capabilities: frozenset[str]) -> dict[str, Any]:
    """A profile file of the node, in JSON.

    Raises INVALID_ARGUMENT for a path that is not absolute or a file that is no OCI seccomp profile.
    """
    if not os.path.isabs(reference):
        raise invalid(f"seccomp profile {reference!r}: the path must be absolute")
    place = f"seccomp profile {reference}"
    return seccomp_json.profile(_json(read_bytes(Path(reference)), place), place, capabilities)


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
    if kind == cri.SecurityProfile.Localhost:
        return localhost(reference, capabilities)
    return runtime_default(capabilities, profile)
