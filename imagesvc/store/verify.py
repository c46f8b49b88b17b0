"""Checking what is on disk against its digests, and dropping only what is bad.

A blob is hashed. A layer is put together again from its directory and skeleton and hashed: every byte of its files counts,
as do their names (not their owners and modes, which the skeleton supplies; but those of a layer that is a file, for its
metadata has a digest of its own). What has no skeleton cannot be checked, and is said so. Images that need a bad layer lose
their record, so that the next pull fetches what is missing; what a container uses is reported and left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from imagesvc.erofs.layer_file import SUFFIX
from imagesvc.limits import MIB
from imagesvc.store.content import ContentStore
from imagesvc.store.layers import Layer
from imagesvc.worker.pool import JobFailed, WorkerPool

_READ = 1 * MIB


@dataclass
class Report:
    """What `verify` found. Problems by digest or layer key."""

    blobs: int = 0
    layers: int = 0
    unchecked: list[str] = field(default_factory=list)
    """Layers that have no skeleton."""
    bad_blobs: dict[str, str] = field(default_factory=dict)
    bad_layers: dict[str, str] = field(default_factory=dict)
    dropped_images: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    """Bad layers that were left, because a container runs on them."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.bad_blobs or self.bad_layers)


def check_blobs(store: ContentStore, digests: Iterable[str], report: Report) -> None:
    """Hashes published blobs. Blocking."""
    for digest in digests:
        algorithm, _, expected = digest.partition(":")
        report.blobs += 1
        actual = hashlib.new(algorithm)
        try:
            with open(store.path(digest), "rb") as stream:
                while chunk := stream.read(_READ):
                    actual.update(chunk)
        except OSError as error:
            report.bad_blobs[digest] = error.strerror or str(error)
            continue
        if actual.hexdigest() != expected:
            report.bad_blobs[digest] = f"its content has the digest {algorithm}:{actual.hexdigest()}"


async def check_layer(workers: WorkerPool, layer: Layer, report: Report) -> None:
    """Puts one layer together again in a worker, and compares."""
    report.layers += 1
    is_file = layer.path.endswith(SUFFIX)
    if not layer.info.skeleton:
        report.unchecked.append(layer.info.key)
        if not is_file:
            return
    try:
        answer = await workers.run(
            {"job": "check", "layer": layer.path} if is_file else {"job": "rebuild", "layer": layer.path, "output": ""}
        )
    except JobFailed as failure:
        report.bad_layers[layer.info.key] = f"{failure.message} {failure.path}".strip()
        return
    if is_file and not answer["metadata"]:
        report.bad_layers[layer.info.key] = "its directories and inodes are not what they were"
    elif layer.info.skeleton and answer["diff_id"] != layer.info.diff_id:
        report.bad_layers[layer.info.key] = f"its content makes {answer['diff_id']} where it should be {layer.info.diff_id}"
