"""fs-verity: a file that the kernel checks block by block as it is read, and that nobody can change any more.

From <linux/fsverity.h>. ext4 and f2fs have it where the file system was made or tuned so (`-O verity`), btrfs always.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct

_ENABLE, _MEASURE = 0x40806685, 0xC0046686  # FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY
_ARGUMENTS = struct.Struct("=IIIIQIIQ88x")
"""struct fsverity_enable_arg: version hash_algorithm block_size salt_size salt_ptr sig_size reserved sig_ptr reserved"""
_DIGEST = struct.Struct("=HH")
"""struct fsverity_digest: algorithm, size; then the digest."""
_SHA256, _SHA256_BYTES = 1, 32
_BLOCK = 4096
_ABSENT = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)
XATTR = "trusted.crisp.verity"
"""Where a file's digest is kept: the kernel knows what the file is, not what it was."""


def is_supported(path: str) -> bool:
    """Whether the file system of a file has it. Raises OSError where the file cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        measure(descriptor)
    except OSError as error:
        return error.errno == errno.ENODATA
    else:
        return True
    finally:
        os.close(descriptor)


def enable(path: str) -> str:
    """Switches it on for a file that nobody has open for writing; its digest, which is kept with the file.

    Raises:
        OSError: EOPNOTSUPP or ENOTTY where the file system does not have it, ETXTBSY where somebody writes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.ioctl(descriptor, _ENABLE, _ARGUMENTS.pack(1, _SHA256, _BLOCK, 0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        digest = measure(descriptor)
        os.setxattr(descriptor, XATTR, digest.encode())
        return digest
    finally:
        os.close(descriptor)


def measure(descriptor: int) -> str:
    """The digest that the kernel holds an open file to. Raises OSError: ENODATA for a file that has none."""
    block = array.array("B", _DIGEST.pack(_SHA256, _SHA256_BYTES) + bytes(_SHA256_BYTES))
    fcntl.ioctl(descriptor, _MEASURE, block)
    return "sha256:" + block.tobytes()[_DIGEST.size :].hex()


def is_as_kept(path: str) -> bool:
    """Whether the kernel holds the file to the digest that is kept with it; true for one that has none. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            kept = os.getxattr(descriptor, XATTR).decode(errors="replace")
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return True
            raise
        try:
            return measure(descriptor) == kept
        except OSError as error:
            if error.errno in (errno.ENODATA, *_ABSENT):
                return True  # a copy, as a restored backup is
            raise
    finally:
        os.close(descriptor)
