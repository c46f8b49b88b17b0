"""What the disk says, as errors for the person who reads them."""

from __future__ import annotations

import errno

from proto.errors import Code, CrispError

_FULL = {errno.ENOSPC: "no space left on device", errno.EDQUOT: "disk quota exceeded"}


def disk_error(error: OSError, directory: str, doing: str) -> CrispError:
    """A failed write, read or sync: RESOURCE_EXHAUSTED where the disk is full, else INTERNAL. Names the directory."""
    if error.errno in _FULL:
        return CrispError(Code.RESOURCE_EXHAUSTED, f"{doing}: {_FULL[error.errno]}: {directory}")
    return CrispError(Code.INTERNAL, f"{doing}: {error.strerror or error}: {error.filename or directory}")
