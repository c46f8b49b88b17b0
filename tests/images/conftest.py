"""What the image tests share: a registry, images to push to it, and an image service with a directory of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from imagesvc.config import ImageConfig
from imagesvc.registry.endpoint import EndpointSources
from imagesvc.service import ImageService
from imagesvc.store.images import Image
from imagesvc.store.layers import DIRECTORY, EROFS
from tests.harness.layer_files import why_not
from tests.images.image_builder import Layout
from tests.images.layer_stack import place_of
from tests.images.memory_records import MemoryRecords
from tests.images.registry_server import Registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An open registry over plain HTTP, for all tests: use repository names of your own."""
    server = Registry(tmp_path_factory.mktemp("registry"))
    yield server
    server.close()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


class Seen(ImageService):
    """A service whose layers a test can look into, whatever they are."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._places = ExitStack()

    def trees(self, image: Image | None) -> list[Path]:
        """The directories of `lower_dirs`: of layers that are files their mounts, until the service is closed."""
        assert image is not None
        return [self._places.enter_context(place_of(Path(layer))) for layer in self.lower_dirs(image)]

    async def close(self) -> None:
        self._places.close()
        await super().close()


class Node:
    """A node's files: records, root directory, registry configuration; services come and go on it."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.certs = base / "certs.d"
        self.certs.mkdir(parents=True)
        self.conf = base / "registries.conf"
        self.auth = base / "auth.json"
        self.records = MemoryRecords()
        self.form = DIRECTORY if why_not(base) else EROFS
        """What new layers are made as."""

    def service(self, **options: Any) -> Seen:
        sources = EndpointSources(
            certs_dirs=(str(self.certs),),
            registries_conf=str(self.conf),
            registries_conf_dir=str(self.conf) + ".d",
            docker_certs_dirs=(),
        )
        config = ImageConfig(registries=sources, auth_files=(str(self.auth),), **options)
        return Seen(config, self.root, self.records, self.form)

    def hosts(self, host: str, text: str) -> None:
        (self.certs / host).mkdir(exist_ok=True)
        (self.certs / host / "hosts.toml").write_text(text)

    def leftovers(self) -> list[str]:
        """What a failed or ended operation must not leave behind."""
        ingest = [f"ingest/{p.name}" for p in (self.root / "ingest").iterdir()]
        layers = [p.name for p in (self.root / "layers").iterdir() if p.name.startswith(("new-", "old-"))]
        return ingest + layers


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


StartService = Callable[..., Any]


@pytest.fixture
async def start(node: Node) -> AsyncIterator[StartService]:
    """Starts services on the node; they are closed at the end."""
    running: list[ImageService] = []

    async def begin(**options: Any) -> ImageService:
        service = node.service(**options)
        await service.start()
        running.append(service)
        return service

    yield begin
    for service in running:
        await service.close()
