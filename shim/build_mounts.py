"""Job: mount an image's files where a build can read them, or write to them.

<directory>/files    layers that are files, while the overlay is made
<directory>/root     the image: read-only, or an overlay with the directories that it is given

`directory` lies on a private mount. What is mounted is unmounted with it, by whoever has asked for it.
"""

from __future__ import annotations

import os
from typing import Any

from kernel import mounts
from proto.errors import failed_precondition
from shim import layer_mounts


def mount(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """`args`: directory (new), lowerdirs (topmost first), layer_mounts (the place of layer_mounts.py), upper and work (empty
    for read-only). Returns {"root": PATH}."""
    try:
        return {"root": _mount(args)}
    except OSError as error:
        raise failed_precondition(f"cannot mount the image: {error.strerror}: {error.filename}") from None


def _mount(args: dict[str, Any]) -> str:
    directory, lower = str(args["directory"]), [str(layer) for layer in args["lowerdirs"]]
    root, files = os.path.join(directory, "root"), os.path.join(directory, "files")
    layers = layer_mounts.clones(str(args["layer_mounts"]), lower)
    os.makedirs(root, mode=0o700)
    places = layer_mounts.attach(files, layers) if layers else {}
    try:
        found = [places.get(layer, layer) for layer in lower]
        if args["upper"]:
            mounts.overlay(root, found, str(args["upper"]), str(args["work"]), volatile=True)
        elif len(found) == 1:
            mounts.bind(found[0], root, readonly=True)
        else:
            mounts.overlay(root, found)
    finally:
        if places:
            mounts.detach(files)  # what is mounted has clones of its own
    return root
