"""Which manifest of an index suits this host.

Names are GOOS/GOARCH, as the OCI image index specification asks: "Image indexes SHOULD use, and implementations SHOULD
understand, values listed in the Go Language document for GOARCH".
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagesvc.manifests import Descriptor
from proto.errors import invalid, not_found

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm"}


@dataclass(frozen=True)
class Platform:
    """An operating system, an architecture and its variant ("" where there is only one)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host_platform() -> Platform:
    """The platform of the machine this runs on."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """Reads `linux/arm64/v8` or `linux/amd64`; INVALID_ARGUMENT otherwise."""
    parts = text.lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise invalid(f"platform {text!r} is not of the form os/architecture[/variant]")
    return _normalise(parts[0], parts[1], parts[2] if len(parts) == 3 else "")


def choose(entries: Sequence[Descriptor], wanted: Platform, where: str) -> Descriptor:
    """The best manifest for a platform.

    An exact variant wins over an older variant of the same architecture (an arm/v7 host runs arm/v6), which wins over an
    architecture that the processor runs too, which wins over an entry that names no platform. Attestations
    (`unknown/unknown`) never match. NOT_FOUND lists what there is.
    """
    # Signatures and the like stand beside the images; they count where there is nothing else.
    entries = [entry for entry in entries if not entry.artifact_type] or list(entries)
    scored = [(score, -i) for i, entry in enumerate(entries) if (score := _score(entry.platform, wanted))]
    if not scored:
        have = sorted({_text(e.platform) for e in entries if e.platform.get("os") != "unknown"})
        raise not_found(f"{where} has no image for {wanted}; it has {', '.join(have) or 'none at all'}")
    return entries[-max(scored)[1]]


def _score(platform: Mapping[str, Any], wanted: Platform) -> int:
    """0 for no match, more for a better one."""
    if not platform:
        return 1
    have = _normalise(
        str(platform.get("os") or ""), str(platform.get("architecture") or ""), str(platform.get("variant") or "")
    )
    if (have.os, have.architecture) != (wanted.os, wanted.architecture):
        return _foreign(have, wanted)
    if have.variant == wanted.variant:
        return 1000
    if wanted.architecture == "arm":
        level, limit = _level(have.variant, default=7), _level(wanted.variant, default=7)
        return 100 + level if level <= limit else 0
    if wanted.architecture == "amd64":
        level, limit = _level(have.variant, default=1), _level(wanted.variant, default=1)
        return 100 + level if level <= limit else 0
    return 50 if not have.variant or not wanted.variant else 0


def _foreign(have: Platform, wanted: Platform) -> int:
    """What the processor runs as well (containerd's platforms.Default): 386 on amd64, 32-bit ARM on arm64."""
    if have.os != wanted.os:
        return 0
    if (have.architecture, wanted.architecture) == ("386", "amd64"):
        return 10
    if (have.architecture, wanted.architecture) == ("arm", "arm64"):
        level = _level(have.variant, default=7)
        return 10 + level if level <= 8 else 0
    return 0


def _normalise(os_name: str, architecture: str, variant: str) -> Platform:
    architecture = _ALIASES.get(architecture, architecture)
    if architecture == "arm64" and variant in ("", "8", "v8"):
        variant = "v8"
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant.isdigit():
        variant = "v" + variant
    return Platform(os_name, architecture, variant)


def _level(variant: str, default: int) -> int:
    digits = variant.removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else default


def _text(platform: Mapping[str, Any]) -> str:
    return "/".join(str(platform[k]) for k in ("os", "architecture", "variant") if platform.get(k)) or "unknown"
