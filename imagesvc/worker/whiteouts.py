"""Whiteouts of a layer that was unpacked before those below it were there (unpack.py)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from imagesvc.erofs import layer_file, removing
from imagesvc.worker.merged_view import MergedView
from kernel.descriptors import pwrite_all


def settle(lower: MergedView, whiteouts: Iterable[bytes]) -> None:
    """Removes those of the whiteouts, given by path below the working directory, that hide nothing of `lower`.

    The times of the directories that they lie in stay as they are.
    """
    for path in whiteouts:
        if lower.lookup(path) is None:
            parent = path.rpartition(b"/")[0] or b"."
            mtime = os.lstat(parent).st_mtime_ns
            os.unlink(path)
            os.utime(parent, ns=(mtime, mtime), follow_symlinks=False)


def settle_file(lower: MergedView, descriptor: int) -> None:
    """The same in a layer that is a file, which has their paths itself."""
    trailer = layer_file.read_from(descriptor)
    useless = [path for path in trailer.whiteouts.split(b"\0") if path and lower.lookup(path) is None]
    digest = trailer.digest
    if useless:
        for address, data in removing.remove(lambda start, length: os.pread(descriptor, length, start), useless):
            pwrite_all(descriptor, data, address)
        digest = layer_file.digest_of(descriptor, trailer.metadata)
    layer_file.write(descriptor, trailer._replace(whiteouts=b"", digest=digest))
