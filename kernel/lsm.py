"""Which Linux security modules are active on this host."""

from __future__ import annotations

import os


def apparmor_enabled() -> bool:
    """Whether AppArmor is enabled in the kernel and its interface is mounted."""
    return _read("/sys/module/apparmor/parameters/enabled")[:1] == b"Y" and os.path.isdir("/sys/kernel/security/apparmor")


def selinux_enabled() -> bool:
    """Whether SELinux is enabled and its file system is mounted."""
    return os.path.exists("/sys/fs/selinux/enforce")


def apparmor_profiles() -> frozenset[str]:
    """Names of the AppArmor profiles that are loaded; empty where AppArmor is off."""
    text = _read("/sys/kernel/security/apparmor/profiles").decode(errors="replace")
    return frozenset(line.rpartition(" (")[0] for line in text.splitlines())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
