"""SIGKILL in the middle of pulls: afterwards there is a whole image or none, and the next start cleans up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagesvc.config import ImageConfig
from imagesvc.erofs import layer_file
from imagesvc.service import ImageService
from imagesvc.store.layers import DIRECTORY, EROFS
from tests.harness.waiting import until
from tests.images.conftest import Node, StartService
from tests.images.fault_proxy import FaultProxy, Rule
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


async def pull(root: str, reference: str, form: str) -> None:
    service = ImageService(ImageConfig(), root, FileRecords(Path(root + ".json")), form)
    await service.start()
    await service.pull(reference)
    print("pulled", flush=True)
    await service.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> tuple[str, str]:
    """An image of five layers: its name without the host, and the digest of its topmost layer."""
    layout = Layout(tmp_path_factory.mktemp("kill") / "layout")
    layers = [
        tar([directory("./"), *(Member(f"f{n}-{i}", os.urandom(3000)) for i in range(800)), Member(f".wh.gone{n}")])
        for n in range(5)
    ]
    layout.image("v1", layers)
    layout.push("v1", f"{registry.host}/kill/image:v1")
    return "kill/image:v1", layout.layer(layers[4])["digest"]


def found(pattern: str, number: int) -> Callable[[Path], bool]:
    return lambda root: len(list(root.glob(pattern))) >= number


def is_whole(path: Path) -> bool:
    """Whether a layer's file has been staged."""
    try:
        return bool(layer_file.read(str(path)).document)
    except (OSError, ValueError):
        return False


MOMENTS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "half of a document": ("/blobs/", found("ingest", 1)),
    "half of every layer": ("/blobs/LAYERS", found("ingest/*.*", 3)),
    "the first files": ("/blobs/TOP", found("layers/new-*/fs/f*", 1)),
    "all layers but one": ("/blobs/TOP", found("layers/new-*/layer.json", 4)),
    "the first of a file": ("/blobs/TOP", found("layers/new-*.erofs", 1)),
    "all files but one": ("/blobs/TOP", lambda root: len(list(filter(is_whole, root.glob("layers/new-*.erofs")))) >= 4),
}
FILES = ("the first of a file", "all files but one")
"""Which replies stop half way, and what is there of the pull when its process is killed."""


@pytest.mark.parametrize("moment", MOMENTS)
async def test_kill(image: tuple[str, str], registry: Registry, node: Node, start: StartService, moment: str) -> None:
    name, top = image
    replies, is_there = MOMENTS[moment]
    async with FaultProxy(registry.host) as proxy:
        # The first of an image's blobs to be asked for is its configuration, which comes whole but for the first moment.
        skipped = [Rule("/blobs/", times=1)] if "LAYERS" in replies else []
        proxy.rules += [*skipped, Rule(replies.replace("TOP", top).replace("LAYERS", ""), stall=asyncio.Event())]
        reference = f"{proxy.host}/{name}"
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "tests.images.test_kill",
                str(node.root),
                reference,
                EROFS if moment in FILES else DIRECTORY,
            ),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await until(lambda: proxy.reached.is_set() and is_there(node.root))
        finally:
            process.kill()
            output, _ = await process.communicate()
        assert (process.returncode, output) == (-signal.SIGKILL, b"")
        proxy.rules.clear()
        await whole_or_nothing(node, start, reference)


async def whole_or_nothing(node: Node, start: StartService, reference: str) -> None:
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
    asyncio.run(pull(*sys.argv[1:]))
