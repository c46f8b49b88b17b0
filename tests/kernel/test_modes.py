"""A directory that came with a disk gets the mode that it must have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagesvc.config import ImageConfig
from imagesvc.service import ImageService
from kernel import modes
from proto.errors import CrispError
from tests.images.memory_records import MemoryRecords

pytestmark = pytest.mark.root


async def test_the_image_store_is_roots_alone_whoever_made_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, mode in (("", 0o755), ("layers", 0o777), ("ingest", 0o755), ("blobs/sha256", 0o755)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    service = ImageService(ImageConfig(), root, MemoryRecords())
    await service.start()
    await service.close()
    found = {name: (root / name).stat().st_mode & 0o7777 for name in ("", "layers", "ingest", "blobs", "blobs/sha256")}
    assert found == {"": 0o700, "layers": 0o711, "ingest": 0o700, "blobs": 0o700, "blobs/sha256": 0o700}


def test_what_is_somebody_elses_is_not_used(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 1000, 1000)
    with pytest.raises(CrispError, match="another user"):
        modes.own(theirs, 0o700)
