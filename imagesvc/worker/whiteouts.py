"""Whiteouts of a layer that was unpacked before those below it were there (unpack.py)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from imagesvc.worker.merged_view import MergedView


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
