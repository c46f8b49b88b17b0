"""One pull does not fail, delay or poison another: docs/pulling.md."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest
from aiohttp import web

from imagesvc.registry import access
from imagesvc.store.content import Ingest
from proto.errors import Code
from tests.harness.waiting import until
from tests.images.conftest import Node, StartService
from tests.images.fake_registry import FakeRegistry, Hook
from tests.images.image_builder import Member, tar
from tests.images.test_pull import failure

pytestmark = pytest.mark.root

BIG = os.urandom(1 << 20)
DEADLINE = 60.0
"""Seconds: far more than anything here takes that is not held up."""


def hanging(registry: FakeRegistry, pattern: str = "/blobs/", first: int = 300_000) -> tuple[Hook, asyncio.Event]:
    """Blobs come as far as `first` bytes, and no further until the event."""
    release = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        usual = registry.usual(request)
        body = bytes(usual.body) if isinstance(usual.body, bytes) else b""
        if usual.status != 200 or len(body) <= first:
            return usual
        reply = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await reply.prepare(request)
        await reply.write(body[:first])
        await release.wait()
        return reply

    return (lambda request: hang(request) if pattern in request.path else None), release


async def test_pulls_that_wait_for_bytes_hold_no_workers(start: StartService) -> None:
    async with FakeRegistry() as hostile, FakeRegistry() as honest:
        for i in range(24):
            hostile.image(f"h{i}", "v1", [tar([Member(f"{i}-{j}", os.urandom(1 << 20))]) for j in range(2)])
        honest.image("good", "v1", [tar([Member("x", BIG)])])
        hostile.hook, release = hanging(hostile)
        service = await start()
        pulls = [asyncio.create_task(service.pull(f"{hostile.host}/h{i}:v1")) for i in range(24)]
        while hostile.count("GET .*/blobs/") < 24 * 3:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(DEADLINE):
            await service.pull(f"{honest.host}/good:v1")
        assert not any(pull.done() for pull in pulls)
        for pull in pulls:
            pull.cancel()
        await asyncio.wait(pulls)
        release.set()


@pytest.mark.parametrize("trouble", ["403", "hang", "trickle", "wrong bytes", "wrong size"])
async def test_anothers_source_is_his_own_trouble(start: StartService, trouble: str) -> None:
    """Both images have the same layer; the other tenant's pull comes first."""
    layer = tar([Member("x", BIG)])
    async with FakeRegistry() as hostile, FakeRegistry() as honest:
        honest.image("good", "v1", [layer])
        described = json.loads(honest.manifests["good"]["v1"][1])["layers"]
        size = described[0]["size"] - (10 if trouble == "wrong size" else 0)
        hostile.image("bad", "v1", [layer], described=[{**described[0], "size": size}])
        hostile.blobs["bad"][described[0]["digest"]] = honest.blobs["good"][described[0]["digest"]]
        hook, release = hanging(hostile, described[0]["digest"], 0 if trouble == "trickle" else 300_000)

        def spoil(request: web.Request) -> web.Response | None:
            if described[0]["digest"] not in request.path:
                return None
            body = hostile.blobs["bad"][described[0]["digest"]]
            return web.Response(status=403) if trouble == "403" else web.Response(body=body[:-1] + b"?")

        hostile.hook = hook if trouble in ("hang", "trickle") else spoil
        service = await start()
        bad = asyncio.create_task(service.pull(f"{hostile.host}/bad:v1"))
        while not hostile.count(f"GET .*{described[0]['digest']}"):
            await asyncio.sleep(0.001)
        async with asyncio.timeout(DEADLINE):
            image = service.resolve(await service.pull(f"{honest.host}/good:v1"))
        assert (Path(service.trees(image)[0]) / "x").read_bytes() == BIG
        if trouble in ("hang", "trickle"):
            bad.cancel()
            await asyncio.wait([bad])
        else:
            assert hostile.host in (await failure(bad)).message
        release.set()


async def test_a_silent_mirror_has_a_short_time_while_there_is_an_alternative(
    node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MIRROR_SECONDS", 0.2)
    async with FakeRegistry() as mirror, FakeRegistry() as origin:
        origin.image("a", "v1", [tar([Member("x", BIG)])])
        release = asyncio.Event()

        async def silent(_request: web.Request) -> web.StreamResponse:
            await release.wait()
            return web.Response(status=500)

        mirror.hook = silent
        node.hosts("registry.example", f'server = "http://{origin.host}"\n[host."http://{mirror.host}"]\n')
        service = await start()
        async with asyncio.timeout(DEADLINE):
            await service.pull("registry.example/a:v1")
        assert len(mirror.requests) == 1
        release.set()


async def test_silence_is_one_budget(node: Node, start: StartService) -> None:
    async with FakeRegistry() as origin:
        origin.image("a", "v1", [tar([Member("x", BIG)])])
        digest = json.loads(origin.manifests["a"]["v1"][1])["layers"][0]["digest"]
        origin.hook, release = hanging(origin, digest, 0)
        service = await start(pull_progress_timeout=0.3)
        async with asyncio.timeout(DEADLINE):
            error = await failure(service.pull(f"{origin.host}/a:v1"))
        assert error.message.startswith("RegistryUnavailable")
        assert origin.count(f"GET .*{digest}") < 6
        release.set()


@pytest.mark.parametrize("told", [True, False])
async def test_a_portals_page_poisons_nothing(node: Node, start: StartService, told: bool) -> None:
    """A mirror answers 200 with a page; told its length, not a byte of it is taken, else the origin begins anew."""
    async with FakeRegistry() as mirror, FakeRegistry() as origin:
        for place in (mirror, origin):
            place.image("a", "v1", [tar([Member("x", BIG)])])

        async def page(request: web.Request) -> web.StreamResponse:
            reply = web.StreamResponse(headers={"Content-Length": "13"} if told else {})
            await reply.prepare(request)
            await reply.write(b"<html></html>")
            return reply

        mirror.hook = lambda request: page(request) if "/blobs/" in request.path else None
        node.hosts("registry.example", f'server = "http://{origin.host}"\n[host."http://{mirror.host}"]\n')
        service = await start()
        async with asyncio.timeout(DEADLINE):
            image = service.resolve(await service.pull("registry.example/a:v1"))
        assert (Path(service.trees(image)[0]) / "x").read_bytes() == BIG


async def test_wrong_bytes_of_an_earlier_try_are_not_this_ones(node: Node, start: StartService) -> None:
    async with FakeRegistry() as origin:
        origin.image("a", "v1", [tar([Member("x", BIG)])])
        digest = json.loads(origin.manifests["a"]["v1"][1])["layers"][0]["digest"]
        service = await start()
        origin.hook, release = hanging(origin, digest)
        pull = asyncio.create_task(service.pull(f"{origin.host}/a:v1"))

        def partials() -> list[Path]:
            return [path for path in (node.root / "ingest").iterdir() if digest[7:] in path.name]

        await until(lambda: origin.count(digest) and partials())
        pull.cancel()
        await asyncio.wait([pull])
        release.set()
        [partial] = partials()
        partial.write_bytes(b"?" * 1000)
        origin.hook = lambda _request: None
        await service.pull(f"{origin.host}/a:v1")
        assert [r for r in origin.sent("Range") if r == "bytes=1000-"]


async def test_a_partial_download_that_is_hashed_holds_up_nobody(
    start: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    rehash = Ingest._rehash

    def slow(self: Ingest) -> bool:
        if self.size == 77:
            gate.wait(DEADLINE)
        return rehash(self)

    monkeypatch.setattr(Ingest, "_rehash", slow)
    async with FakeRegistry() as registry:
        registry.image("good", "v1", [tar([Member("x", b"")])])
        registry.image("slow", "v1", [], described=[{**registry.layer("slow", tar([])), "size": 77}], document={
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}})  # fmt: skip
        service = await start()
        held = asyncio.create_task(service.pull(f"{registry.host}/slow:v1"))
        while not registry.count("GET /v2/slow/blobs"):
            await asyncio.sleep(0.001)
        async with asyncio.timeout(DEADLINE):
            await service.pull(f"{registry.host}/good:v1")
        gate.set()
        assert (await failure(held)).code is Code.UNKNOWN


async def test_eight_tags_of_one_image_at_once(start: StartService) -> None:
    async with FakeRegistry() as registry:
        names = [f"{registry.host}/r{i}:v1" for i in range(8)]
        for i in range(8):
            registry.image(f"r{i}", "v1", [tar([Member("x", b"1")])])
        service = await start()
        records = service._index._records
        put = records.put

        async def slow(image_id: str, record: dict[str, object]) -> None:
            await asyncio.sleep(0.01)
            await put(image_id, record)

        records.put = slow
        ids = set(await asyncio.gather(*(service.pull(name) for name in names)))
        assert len(ids) == 1
        assert sorted(service.resolve(ids.pop()).repo_tags) == sorted(names)


async def test_a_pull_beside_a_removal_has_the_image(start: StartService) -> None:
    async with FakeRegistry() as registry:
        registry.image("a", "v1", [tar([Member("x", b"1")])])
        name = f"{registry.host}/a:v1"
        service = await start()
        records = service._index._records
        put, delete = records.put, records.delete

        async def slow_put(image_id: str, record: dict[str, object]) -> None:
            await asyncio.sleep(0.002)
            await put(image_id, record)

        async def slow_delete(image_id: str) -> None:
            await asyncio.sleep(0.003)
            await delete(image_id)

        records.put, records.delete = slow_put, slow_delete
        for i in range(20):
            await service.pull(name)
            removal = asyncio.create_task(service.remove(name))
            await asyncio.sleep(i / 4000)
            await service.pull(name)
            image = service.resolve(name)
            # The removal may still come after the pull; then it is the last word, and the image is gone for all.
            await removal
            if image is not None and service.resolve(name) is not None:
                assert (Path(service.trees(image)[0]) / "x").exists()
            assert set(records.documents) == {i.id for i in service.list()}
