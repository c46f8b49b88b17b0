"""SIGKILL in the middle of pulls: afterwards there is a whole image or none, and the next start cleans up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from imagesvc.config import ImageConfig
from imagesvc.service import ImageService
from tests.images.conftest import Node, StartService
from tests.images.image_builder import Layout, Member, directory, tar
from tests.images.memory_records import MemoryRecords
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root


class FileRecords(MemoryRecords):
    """Records that outlive the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            self.documents = json.loads(path.read_text())

    async def put(self, image_id: str, record: dict[str, Any]) -> None:
        await super().put(image_id, record)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self.documents))
        new.rename(self._path)


async def pull(root: str, reference: str) -> None:
    service = ImageService(ImageConfig(), root, FileRecords(Path(root + ".json")))
    await service.start()
    await service.pull(reference)
    print("pulled", flush=True)
    await service.close()


@pytest.mark.parametrize("milliseconds", [60, 120, 200, 280, 360, 450, 550, 700])
async def test_kill(layout: Layout, registry: Registry, node: Node, start: StartService, milliseconds: int) -> None:
    layers = [
        tar([directory("./"), *(Member(f"f{n}-{i}", os.urandom(3000)) for i in range(800)), Member(f".wh.gone{n}")])
        for n in range(5)
    ]
    layout.image("v1", layers)
    reference = f"{registry.host}/kill/image:{milliseconds}"
    layout.push("v1", reference)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.images.test_kill", str(node.root), reference), stdout=asyncio.subprocess.PIPE
    )
    # The moment need not be exact: whatever it meets has to hold.
    await asyncio.sleep(milliseconds / 1000)
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.communicate()

    node.records = FileRecords(Path(str(node.root) + ".json"))
    service = await start()
    await service.settle()
    assert [name for name in node.leftovers() if not name.startswith("ingest/")] == []
    report = await service.verify(repair=False)
    assert report.good
    assert len(service.list()) == (1 if report.layers else 0)
    image = service.resolve(await service.pull(reference))
    assert len(service.lower_dirs(image)) == 5
    assert (await service.verify(repair=False)).good
    assert node.leftovers() == []


if __name__ == "__main__":
    asyncio.run(pull(sys.argv[1], sys.argv[2]))
