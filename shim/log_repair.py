"""A log that ended in half a line, because power was cut or its writer was killed: it is closed with a whole one.

Readers parse line by line; what a later writer appends would become part of the torso. A torso that says its time, stream
and tag is a line, and is ended. Of less nothing can be read: it is cut off, as are zeros that a file system leaves.
"""

from __future__ import annotations

import os
import re
import stat

TAIL = 1 << 16  # bytes of the end that are looked at: more than a line has

_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\S+ (?:stdout|stderr) [FP]\S* ")


def complete(path: str) -> None:
    """Repair the end of a log, if it is a file and needs it; one that cannot be opened is left to who opens it next."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            _complete(fd, status.st_size)
    except OSError:
        return
    finally:
        os.close(fd)


def _complete(fd: int, size: int) -> None:
    begin = max(0, size - TAIL)
    tail = os.pread(fd, TAIL, begin)
    text = tail.rstrip(b"\0")
    if text.endswith(b"\n") and text == tail:
        return
    torso = text[text.rfind(b"\n") + 1 :]
    if torso and _LINE.match(torso):
        os.ftruncate(fd, begin + len(text))
        os.pwrite(fd, b"\n", begin + len(text))
    elif len(torso) < len(text) or begin == 0:
        os.ftruncate(fd, begin + len(text) - len(torso))
