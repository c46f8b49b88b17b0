"""Project quotas: the file system's own count of what lies below a directory, where it keeps one (ext4 and xfs, `prjquota`).

A directory is given a project id that everything made in it inherits; the count is then one system call, however many files
there are. Ids are the caller's choice; 0 stands for no project.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NamedTuple

from kernel import syscalls

# struct fsxattr (linux/fs.h): xflags, extsize, nextents, projid, cowextsize, 8 bytes of padding.
_FSXATTR = struct.Struct("=IIIII8s")
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_FS_XFLAG_PROJINHERIT = 0x200

# struct if_dqblk (linux/quota.h): hard and soft block limits, bytes, hard and soft inode limits, inodes, two times, valid.
_DQBLK = struct.Struct("=8QI4x")
_Q_GETQUOTA, _PRJQUOTA = 0x800007, 2
_COMMAND = (_Q_GETQUOTA << 8) | _PRJQUOTA


class Usage(NamedTuple):
    """What a project takes of its file system."""

    bytes: int
    inodes: int


def available(directory: str) -> bool:
    """Whether the file system of `directory` counts by project."""
    try:
        usage(directory, 0)
    except OSError:
        return False
    return True


def assign(directory: str, project: int) -> None:
    """Count everything that is made in `directory` from now on for `project`."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = bytearray(_FSXATTR.size)
        fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, attributes)
        flags, extent, extents, _, cow, rest = _FSXATTR.unpack(attributes)
        wanted = _FSXATTR.pack(flags | _FS_XFLAG_PROJINHERIT, extent, extents, project, cow, rest)
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, wanted)
    finally:
        os.close(fd)


def usage(directory: str, project: int) -> Usage:
    """The count of `project` on the file system of `directory`; OSError if it keeps none."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        block = bytearray(_DQBLK.size)
        try:
            syscalls.quotactl_fd(fd, _COMMAND, project, block)
        except OSError as error:
            if error.errno == errno.ENOENT:  # nothing was counted for it yet
                return Usage(0, 0)
            raise
    finally:
        os.close(fd)
    fields = _DQBLK.unpack(block)
    return Usage(fields[2], fields[5])
