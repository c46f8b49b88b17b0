"""What is said between crisp and a plugin: environment and configuration in, result or error out.

CNI specification 1.1, sections 2 and 3. Nothing here runs anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final

from proto.errors import Code, CrispError
from runtime.network.cni.network_list import NetworkList

TRY_AGAIN_LATER: Final = 11
"""Error code: "Try again later. The plugin detects some transient condition that should clear up."""

MAX_MESSAGE: Final = 16 * 1024
"""Characters of a plugin's error that go on to the pod's event."""


@dataclass(frozen=True, slots=True)
class Target:
    """One interface of one pod in one network."""

    container_id: str
    netns: str
    """Path; empty at DEL when the namespace is gone."""
    interface: str
    arguments: str
    """CNI_ARGS."""


def environment(command: str, bin_dirs: Sequence[Path], target: Target | None = None) -> dict[str, str]:
    """CNI_* variables of a call; `target` None for those that concern no attachment: VERSION, STATUS, GC."""
    variables = {"CNI_COMMAND": command, "CNI_PATH": ":".join(str(directory) for directory in bin_dirs)}
    if target is not None:
        variables |= {
            "CNI_CONTAINERID": target.container_id,
            "CNI_NETNS": target.netns,
            "CNI_IFNAME": target.interface,
            "CNI_ARGS": target.arguments,
        }
    return variables


def configuration(
    network: NetworkList,
    plugin: Mapping[str, Any],
    *,
    capabilities: Mapping[str, Any] | None = None,
    previous: Mapping[str, Any] | None = None,
    attachments: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """The JSON on a plugin's standard input.

    `capabilities` is what the runtime could tell; a plugin is told what it declares to understand. `attachments`, of GC
    alone, are the pairs of container and interface that must be left alone.
    """
    document = {key: value for key, value in plugin.items() if key not in ("capabilities", "runtimeConfig", "prevResult")}
    document["cniVersion"] = network.version
    document["name"] = network.name
    declared = {name for name, wanted in plugin.get("capabilities", {}).items() if wanted is True}
    told = {name: value for name, value in (capabilities or {}).items() if name in declared}
    if told:
        document["runtimeConfig"] = told
    if previous is not None:
        document["prevResult"] = dict(previous)
    if attachments is not None:
        document["cni.dev/valid-attachments"] = [{"containerID": id_, "ifname": name} for id_, name in attachments]
    return document


def result(network: NetworkList, plugin: str, output: bytes) -> dict[str, Any]:
    """What a successful ADD returned. Raises INTERNAL if that is no result."""
    try:
        document = json.loads(output)
    except (ValueError, RecursionError):
        shown = output[:200].decode(errors="replace").strip() or "nothing"
        raise CrispError(
            Code.INTERNAL, f"network {network.name}: plugin {plugin} reported success, but its result is no JSON: {shown}"
        ) from None
    if not isinstance(document, dict):
        raise CrispError(Code.INTERNAL, f"network {network.name}: plugin {plugin}: its result is not a JSON object")
    try:
        _check_addresses(document)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise CrispError(
            Code.INTERNAL, f"network {network.name}: plugin {plugin}: bad addresses in its result: {error}"
        ) from None
    document.setdefault("cniVersion", network.version)
    return document


def _check_addresses(document: Mapping[str, Any]) -> None:
    """Raises what `addresses` would raise for any interface."""
    interfaces = [dict(interface) for interface in document.get("interfaces") or []]
    for entry in document.get("ips") or []:
        ip_interface(entry["address"])
        index = entry.get("interface")
        if index is not None and index >= 0:
            interfaces[index].get("sandbox")


def addresses(document: Mapping[str, Any], interface: str) -> tuple[str, ...]:
    """The pod's addresses in a result, without prefix lengths: those of `interface` inside the pod, and those that a
    plugin did not put down to any."""
    interfaces = document.get("interfaces") or []
    found = []
    for entry in document.get("ips") or []:
        index = entry.get("interface")
        if index is not None and index >= 0:
            owner = interfaces[index]
            if not owner.get("sandbox") or owner.get("name") != interface:
                continue
        found.append(str(ip_interface(entry["address"]).ip))
    return tuple(found)


def failure(network: str, plugin: str, command: str, status: int, output: bytes, errors: bytes) -> CrispError:
    """A plugin that ended with another exit status than 0.

    "Errors must be indicated by a non-zero return code and the following JSON being printed to stdout: cniVersion, code,
    msg, details." Not all plugins do; whatever they wrote is shown.
    """
    said, code = _said(output)
    written = errors.decode(errors="replace").strip()
    parts = [said, f"on standard error: {written}" if written and written not in said else ""]
    reason = "; ".join(part for part in parts if part)
    if not reason:
        reason = f"ended with signal {-status}" if status < 0 else f"exit status {status} without a message"
    message = f"network {network}: plugin {plugin} failed at {command}: {reason}"
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + " (cut)"
    return CrispError(Code.UNAVAILABLE if code == TRY_AGAIN_LATER else Code.INTERNAL, message)


def _said(output: bytes) -> tuple[str, int]:
    text = output.decode(errors="replace").strip()
    try:
        document = json.loads(text)
        code, message, details = document.get("code", 0), document.get("msg", ""), document.get("details", "")
    except (ValueError, AttributeError, RecursionError):
        return text, 0
    if not message and not details:
        return text, 0
    reason = ": ".join(str(part) for part in (message, details) if part)
    return (f"{reason} (code {code})" if code else reason), code if isinstance(code, int) else 0


def supported_versions(output: bytes) -> set[str]:
    """What a plugin answered to VERSION; empty if that is no answer."""
    try:
        versions = json.loads(output)["supportedVersions"]
        return {version for version in versions if isinstance(version, str)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()
