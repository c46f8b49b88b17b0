"""The upper and work directory of an overlay, for a container or a build.

<layer>/upper    what is written
<layer>/work     overlay's own
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make(layer: Path, mode: int, uid: int, gid: int) -> None:
    """Make both in a directory that is there. Mode and owner are the root's: overlay shows those of the upper directory."""
    upper = layer / "upper"
    for directory in (upper, layer / "work"):
        directory.mkdir(mode=0o700)
    os.chown(upper, uid, gid)
    upper.chmod(mode)
