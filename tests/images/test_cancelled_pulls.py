"""Pulls that are given up while they publish or settle: what another one relies on stays, and nothing that is nobody's."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagesvc.store import layers as layer_store
from imagesvc.store.layers import DIRECTORY, EROFS
from tests.harness.waiting import until
from tests.images.conftest import Node, Seen, StartService
from tests.images.fault_proxy import FaultProxy, Rule
from tests.images.image_builder import Layout, Member, directory, tar
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root

DEADLINE = 60.0
BASE = tar([directory("./"), directory("d/"), Member("d/x", b"1" * 5000), Member("d/y", b"2")])
UPON = tar([directory("d/"), Member("d/.wh.x"), Member("d/.wh.absent"), Member("top", os.urandom(200_000))])
OTHER = tar([Member("other", os.urandom(200_000))])


@pytest.fixture(params=[EROFS, DIRECTORY])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Node:
    node = Node(tmp_path / "node")
    node.form = request.param
    return node


class Gate:
    """A call in a thread that waits where it is for the first time."""

    def __init__(self, call: Callable[..., Any], concerns: Callable[..., bool]) -> None:
        self._call, self._concerns = call, concerns
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._concerns(*args) and not self.reached.is_set():
            self.reached.set()
            self.open.wait(DEADLINE)
        return self._call(*args, **kwargs)


async def give_up(pull: asyncio.Task[str], gate: Gate) -> None:
    """Cancel it, twice, where the gate holds it; then let it go on."""
    await until(gate.reached.is_set)
    for _ in range(2):
        pull.cancel()
        await asyncio.sleep(0)
    gate.open.set()
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(asyncio.CancelledError):
            await pull


async def check_whole(service: Seen, name: str) -> None:
    """It can be pulled, all of it is there then, and no layer that is nobody's."""
    async with asyncio.timeout(DEADLINE):
        await service.pull(name)
        await service.settle()
    image = service.resolve(name)
    assert image is not None
    assert all(map(os.path.exists, service.lower_dirs(image)))
    assert (await service.verify()).good
    await service.remove(name)
    async with asyncio.timeout(DEADLINE):
        await service.settle()


@pytest.mark.parametrize("where", ["rename", "sync"])
async def test_given_up_while_layers_get_their_names(
    layout: Layout, registry: Registry, node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The names must not be given to what is being removed, and what has them must not be removed."""
    name = f"{registry.host}/cancelled/{where}-{node.form}:v"
    layout.image("p", [BASE, OTHER])
    layout.push("p", name)
    service = await start()
    if where == "rename":
        gate = Gate(os.rename, lambda old, new: "/layers/new-" in str(old) and "/layers/old-" not in str(new))
        monkeypatch.setattr(os, "rename", gate)
    else:
        gate = Gate(layer_store.sync_directory, lambda path: path.endswith("/layers"))
        monkeypatch.setattr(layer_store, "sync_directory", gate)
    await give_up(asyncio.create_task(service.pull(name)), gate)
    await check_whole(service, name)
    assert os.listdir(node.root / "layers") == []


async def test_given_up_while_it_is_recorded(
    layout: Layout, registry: Registry, node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that have their names have an image too."""
    name = f"{registry.host}/cancelled/record-{node.form}:v"
    layout.image("p", [BASE, OTHER])
    layout.push("p", name)
    service = await start()
    add, reached, go = service._index.add, asyncio.Event(), asyncio.Event()

    async def slow(image: Any) -> Any:
        reached.set()
        await go.wait()
        return await add(image)

    monkeypatch.setattr(service._index, "add", slow)
    pull = asyncio.create_task(service.pull(name))
    async with asyncio.timeout(DEADLINE):
        await reached.wait()
        pull.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await pull
    assert service.resolve(name) is not None
    await check_whole(service, name)
    assert os.listdir(node.root / "layers") == []


async def test_a_layer_below_is_published_while_one_is_settled(
    layout: Layout, registry: Registry, node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both images have the lowest layer; it gets its name while the other's whiteouts are looked for in it."""
    host = registry.host
    for tag, upper in (("x", UPON), ("y", OTHER)):
        layout.image(tag, [BASE, upper])
        layout.push(tag, f"{host}/cancelled/shared-{node.form}:{tag}")
    async with FaultProxy(host) as proxy, asyncio.timeout(DEADLINE):
        held = asyncio.Event()
        proxy.rules.append(Rule(f"/blobs/{layout.layer(OTHER)['digest']}", stall=held))
        service = await start()
        other = asyncio.create_task(service.pull(f"{proxy.host}/cancelled/shared-{node.form}:y"))
        await proxy.reached.wait()
        run, told = service._workers.run, []

        async def late(request: dict[str, Any], *rest: Any) -> Any:
            if request["job"] == "settle" and not told:
                told.append(request)
                held.set()
                await other
            return await run(request, *rest)

        monkeypatch.setattr(service._workers, "run", late)
        await service.pull(f"{proxy.host}/cancelled/shared-{node.form}:x")
        assert told


async def test_given_up_while_a_layer_is_settled(
    layout: Layout, registry: Registry, node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pull has found the layer: what was begun with it is done."""
    host = registry.host
    for tag, tars in (("x", [BASE, UPON]), ("y", [BASE, UPON, OTHER])):
        layout.image(tag, tars)
        layout.push(tag, f"{host}/cancelled/settled-{node.form}:{tag}")
    service = await start()
    run, reached, go, settled = service._workers.run, asyncio.Event(), asyncio.Event(), []

    async def slow(request: dict[str, Any], *rest: Any) -> Any:
        if request["job"] == "settle":
            settled.append(request)
            reached.set()
            await go.wait()
        return await run(request, *rest)

    monkeypatch.setattr(service._workers, "run", slow)
    one = asyncio.create_task(service.pull(f"{host}/cancelled/settled-{node.form}:x"))
    async with asyncio.timeout(DEADLINE):
        await reached.wait()
        other = asyncio.create_task(service.pull(f"{host}/cancelled/settled-{node.form}:y"))
        one.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await one
        await other
    assert (await service.verify()).good
