"""Pulling into layers that are files, above all those whose tree has to wait for the layers below."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from imagesvc.store.layers import Layer
from imagesvc.transfer.unpacking import Part, Unpacker
from tests.harness import layer_files
from tests.images.conftest import Node, StartService
from tests.images.fault_proxy import FaultProxy, Rule
from tests.images.image_builder import Layout, Member, directory, hardlink, sha256, tar
from tests.images.layer_stack import assert_sound, describe, overlay
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root

BIG = os.urandom(3 << 20)
BELOW = tar([directory("./"), directory("opt/", 0o711, uid=5), Member("opt/shared", BIG), Member(".wh.gone")])


def upon(name: str) -> bytes:
    """A layer that leaves out a directory of BELOW, takes a file from there, and hides what is not there."""
    return tar(
        [Member(f"opt/{name}", BIG), Member("opt/.wh.absent"), hardlink("link", "opt/shared"), Member(f"more/{name}", b"x")]
    )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    layer_files.need(tmp_path)
    node = Node(tmp_path / "node")
    node.form = "erofs"
    return node


async def test_the_disk_is_synced_once(layout: Layout, registry: Registry, start: StartService) -> None:
    """Each sync but the last would write blobs that are still on their way."""
    layout.image("many", [tar([Member(f"f{i}", os.urandom(1 << 20))]) for i in range(6)])
    layout.push("many", f"{registry.host}/files/many:v1")
    service = await start()
    staged: list[int] = []
    sync = service._layers._sync

    async def noted() -> None:
        staged.append(len(service._layers._staged))
        await sync()

    service._layers._sync = noted
    await service.pull(f"{registry.host}/files/many:v1")
    assert staged == [6]


@pytest.mark.parametrize("resumed", [True, False])
async def test_a_tree_waits_for_the_layers_below(
    layout: Layout,
    registry: Registry,
    node: Node,
    start: StartService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    resumed: bool,
) -> None:
    """Four images at once with one layer in common; what waits is completed, or, where that fails, unpacked again."""
    names = [f"n{i}" for i in range(4)]
    for name in names:
        layout.image(name, [BELOW, upon(name)])
        layout.push(name, f"{registry.host}/files/joint{int(resumed)}:{name}")
    completed = []

    async def note(self: Unpacker, part: object, lower: object) -> object:
        completed.append(part)
        return await complete(self, part, lower) if resumed else None  # type: ignore[arg-type]

    complete = Unpacker.complete
    monkeypatch.setattr(Unpacker, "complete", note)
    async with FaultProxy(registry.host) as proxy:
        service = await start()
        images = [f"{proxy.host}/files/joint{int(resumed)}:{name}" for name in names]
        await asyncio.gather(*(service.pull(image) for image in images))
        assert proxy.count(f"GET .*/blobs/{layout.layer(BELOW)['digest']}") == 1
    assert len(completed) == len(names)
    for name, image in zip(names, images, strict=True):
        layers = [Path(lower) for lower in service.lower_dirs(service.resolve(image))]
        for layer in layers:
            assert_sound(layer)
        with overlay(layers, tmp_path / name) as merged:
            shown = describe(merged)
        assert sorted(shown) == sorted(
            [b"link", b"more", f"more/{name}".encode(), b"opt", b"opt/shared", f"opt/{name}".encode()]
        )
        assert shown[b"opt"][1:4] == (0o711, 5, 0)
        assert shown[b"link"][4] == shown[f"opt/{name}".encode()][4] == BIG
    for image in images:
        await service.remove(image)
    await service.settle()
    assert node.leftovers() == []
    assert os.listdir(node.root / "layers") == []


async def test_what_waits_in_vain_goes(
    layout: Layout, registry: Registry, node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.image("vain", [BELOW, upon("vain")])
    layout.push("vain", f"{registry.host}/files/vain:v1")
    waits = asyncio.Event()

    async def note(self: Unpacker, *args: Any) -> Layer | Part:
        made = await unpack(self, *args)
        if isinstance(made, Part):
            waits.set()
        return made

    unpack = Unpacker.unpack
    monkeypatch.setattr(Unpacker, "unpack", note)
    async with FaultProxy(registry.host) as proxy:
        held = asyncio.Event()
        proxy.rules.append(Rule(f"/blobs/{layout.layer(BELOW)['digest']}", stall=held))
        service = await start()
        pull = asyncio.create_task(service.pull(f"{proxy.host}/files/vain:v1"))
        await asyncio.wait_for(waits.wait(), 60)
        assert any(name.startswith("new-") for name in node.leftovers())
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull
        held.set()
        await service.settle()
    assert [name for name in node.leftovers() if name.startswith("new-")] == []


async def test_what_another_pull_began_and_left_goes_too(
    layout: Layout, registry: Registry, node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pulls with one layer: who has begun it leaves before it is there, and the other one while it waits."""
    layout.image("two", [BELOW, upon("two")])
    for tag in ("one", "other"):
        layout.push("two", f"{registry.host}/files/two:{tag}")
    unpacked, go, waits = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(self: Unpacker, *args: Any) -> Layer | Part:
        made = await unpack(self, *args)
        if isinstance(made, Part):
            unpacked.set()
            await go.wait()
            asyncio.get_running_loop().call_soon(waits.set)
        return made

    unpack = Unpacker.unpack
    monkeypatch.setattr(Unpacker, "unpack", hold)
    async with FaultProxy(registry.host) as proxy:
        held = asyncio.Event()
        proxy.rules.append(Rule(f"/blobs/{layout.layer(BELOW)['digest']}", stall=held))
        service = await start()
        pulls = [asyncio.create_task(service.pull(f"{proxy.host}/files/two:one"))]
        await asyncio.wait_for(unpacked.wait(), 60)
        pulls.append(asyncio.create_task(service.pull(f"{proxy.host}/files/two:other")))
        manifests = "GET .*/manifests/other"
        while proxy.count(manifests) < 1 or len(service.running_pulls()) < 2 or not service.running_pulls()[1].layers:
            await asyncio.sleep(0.01)
        for pull in pulls:
            pull.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pull
            if not go.is_set():
                go.set()
                await asyncio.wait_for(waits.wait(), 60)
                await asyncio.sleep(0)
        held.set()
        await service.settle()
    assert [name for name in node.leftovers() if name.startswith("new-")] == []


async def test_what_waits_may_have_replaced_its_files(
    layout: Layout, registry: Registry, start: StartService, tmp_path: Path
) -> None:
    """A name that comes again and again, before it is known that others are needed: only the last one has an inode left."""
    often = [Member("again", b"%d" % i) for i in range(9)]
    layers = [BELOW, tar([*often, Member("opt/late", b"x")]), tar([Member("kept", b"k"), directory("kept"), *often])]
    layout.image("again", layers)
    layout.push("again", f"{registry.host}/files/again:v1")
    service = await start()
    await service.pull(f"{registry.host}/files/again:v1")
    roots = [Path(lower) for lower in service.lower_dirs(service.resolve(f"{registry.host}/files/again:v1"))]
    for root in roots:
        assert_sound(root)
    with overlay(roots, tmp_path / "again") as merged:
        assert (merged / "again").read_bytes() == b"8"
        assert (merged / "opt/late").read_bytes() == b"x"


async def test_they_are_sent_on_as_they_came(
    layout: Layout, registry: Registry, node: Node, start: StartService, tmp_path: Path
) -> None:
    """Put together again from files, without a mount: the same layers; and `verify` finds them so."""
    layout.image("sent", [BELOW, upon("sent")])
    layout.push("sent", f"{registry.host}/files/sent:v1")
    service = await start()
    await service.pull(f"{registry.host}/files/sent:v1")
    report = await service.verify()
    assert (report.good, report.layers, report.unchecked) == (True, 2, [])
    await service.push(f"{registry.host}/files/sent:v1", f"{registry.host}/files/other:v1")
    other = Node(tmp_path / "other").service()
    await other.start()
    try:
        await other.pull(f"{registry.host}/files/other:v1")
        image = other.resolve(f"{registry.host}/files/other:v1")
        assert image is not None
        assert [layer.diff_id for layer in image.layers] == [sha256(BELOW), sha256(upon("sent"))]
    finally:
        await other.close()


async def test_what_is_damaged_is_found_and_fetched_again(
    layout: Layout, registry: Registry, node: Node, start: StartService
) -> None:
    layout.image("hurt", [BELOW])
    layout.push("hurt", f"{registry.host}/files/hurt:v1")
    service = await start()
    await service.pull(f"{registry.host}/files/hurt:v1")
    (path,) = (Path(lower) for lower in service.lower_dirs(service.resolve(f"{registry.host}/files/hurt:v1")))
    with open(path, "r+b") as file:
        file.seek(1152 + 4)  # the root's mode
        file.write(b"\0")
    report = await service.verify()
    assert list(report.bad_layers.values()) == ["its directories and inodes are not what they were"]
    assert service.resolve(f"{registry.host}/files/hurt:v1") is None
    await service.pull(f"{registry.host}/files/hurt:v1")
    assert (await service.verify()).good


async def test_a_layer_that_is_not_there_is_found_and_fetched_again(
    layout: Layout, registry: Registry, node: Node, start: StartService
) -> None:
    """A file that was cut off is no layer at the next start; the image that needs it is as if it were whole until then."""
    image = f"{registry.host}/files/lost:v1"
    layout.image("lost", [BELOW, upon("lost")])
    layout.push("lost", image)
    service = await start()
    await service.pull(image)
    path = service.lower_dirs(service.resolve(image))[-1]
    os.truncate(path, 5000)
    await service.close()
    service = await start()
    report = await service.verify(repair=False)
    assert list(report.bad_layers.values()) == ["it is not there"]
    assert service.resolve(image) is not None
    assert not (await service.verify()).good
    assert service.resolve(image) is None
    await service.pull(image)
    assert (await service.verify()).good
