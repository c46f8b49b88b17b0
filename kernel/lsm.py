"""Linux security modules: which are active on this host, and the labels of files."""

from __future__ import annotations

import errno
import os

_LABEL = "security.selinux"


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


def file_label(path: str) -> str:
    """SELinux label of a file, not of what a link points at; empty where the file system has none."""
    try:
        return os.getxattr(path, _LABEL, follow_symlinks=False).rstrip(b"\0").decode(errors="replace")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return ""
        raise


def set_file_label(path: str, label: str) -> None:
    """Give a file an SELinux label; ENOTSUP is passed over, for such a file system was mounted with one label for all."""
    try:
        os.setxattr(path, _LABEL, label.encode() + b"\0", follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
