"""Copying one object of a lower layer into a higher one, as overlayfs does before it changes something."""

from __future__ import annotations

import os
import stat

from imagesvc.worker.merged_view import Found

OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
"""Attributes by which overlayfs is steered: they are never copied, nor taken from an archive."""
HOST_LABEL = b"security.selinux"
"""Every file has it where the host has SELinux: it is no image's."""
_COPY_CHUNK = 1 << 30
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_object(found: Found, path: bytes) -> None:
    """Copies one object with its owner, mode, attributes and times; of a directory not what is in it."""
    status = found.status
    if found.is_directory:
        os.mkdir(path)
    elif found.is_symlink:
        os.symlink(found.link_target(), path)
    elif stat.S_ISREG(status.st_mode):
        copy_content(found, path)
    else:
        os.mknod(path, status.st_mode, status.st_rdev)
    os.lchown(path, status.st_uid, status.st_gid)
    if not found.is_symlink:
        os.chmod(path, stat.S_IMODE(status.st_mode))
    for name, value in kept_xattrs(found):
        os.setxattr(path, name, value, follow_symlinks=False)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def kept_xattrs(found: Found) -> list[tuple[bytes, bytes]]:
    """The attributes that go with an object's copy."""
    return [(name, value) for name, value in found.xattrs() if not name.startswith(OVERLAY_XATTRS)]


def inherit_xattrs(found: Found, path: bytes) -> bool:
    """Gives a directory the attributes of the one below it that it lacks; returns whether that one has any."""
    own = {os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)}
    kept = [(name, value) for name, value in kept_xattrs(found) if name != HOST_LABEL]
    for name, value in kept:
        if name not in own:
            os.setxattr(path, name, value, follow_symlinks=False)
    return bool(kept)


def copy_content(source: Found, target: bytes) -> None:
    """Copies the bytes of a regular file into a new one that is root's alone."""
    reader = os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source.layer)
    try:
        writer = os.open(target, _CREATE, 0o600)
        try:
            offset = 0
            while copied := os.sendfile(writer, reader, offset, _COPY_CHUNK):
                offset += copied
        finally:
            os.close(writer)
    finally:
        os.close(reader)
