"""Broken connections, wrong bytes, hostile layers, full disks, cancellation and restarts."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from imagesvc.limits import MAX_MANIFEST_BYTES, MAX_TOKEN_REPLY_BYTES, Limits
from proto.errors import Code
from tests.images.conftest import Node, StartService
from tests.images.fake_registry import FakeRegistry
from tests.images.fault_proxy import FaultProxy, Rule
from tests.images.image_builder import OCI, Layout, Member, directory, hardlink, sha256, symlink, tar
from tests.images.registry_server import Registry
from tests.images.test_pull import failure

pytestmark = pytest.mark.root

BIG = os.urandom(8 << 20)


@pytest.fixture
def image(layout: Layout, registry: Registry) -> tuple[str, str]:
    """A one-layer image: its name without the host, and its layer's digest."""
    name = f"faults/{layout.path.parent.name.lower().replace('_', '-')}:v1"
    members = [directory("./"), Member("big", BIG)]
    layout.image("v1", [tar(members)])
    layout.push("v1", f"{registry.host}/{name}")
    return name, layout.layer(tar(members))["digest"]


async def test_a_cut_download_goes_on_where_it_stopped(
    registry: Registry, image: tuple[str, str], start: StartService
) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule(f"/blobs/{digest}", times=3, cut_after=2 << 20))
        service = await start()
        await service.pull(f"{proxy.host}/{name}")
        ranges = [h.get("Range") for _method, path, h in proxy.requests if path.endswith(digest)]
        assert ranges[0] is None
        assert len(ranges) == 4
        assert all(r is not None and r.startswith("bytes=") for r in ranges[1:])


async def test_a_failed_pull_is_resumed_by_the_next_one_even_after_a_restart(
    registry: Registry, image: tuple[str, str], node: Node, start: StartService
) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules += [Rule(f"/blobs/{digest}", times=1, cut_after=4 << 20), Rule(f"/blobs/{digest}", times=1, status=403)]
        service = await start()
        error = await failure(service.pull(f"{proxy.host}/{name}"))
        assert error.code is Code.PERMISSION_DENIED
        assert service.list() == []
        await service.settle()
        assert len(node.leftovers()) == 1
        await service.close()
        again = await start()
        await again.pull(f"{proxy.host}/{name}")
        last = [h for _method, path, h in proxy.requests if path.endswith(digest)][-1]
        assert int(last["Range"].removeprefix("bytes=").rstrip("-")) > 1 << 20
        assert node.leftovers() == []


async def test_corrupt_bytes_are_fetched_again_from_the_next_endpoint(
    registry: Registry, image: tuple[str, str], node: Node, start: StartService
) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule(f"/blobs/{digest}", corrupt=True))
        node.hosts("registry.example", f'server = "http://{registry.host}"\n[host."http://{proxy.host}"]\n')
        service = await start()
        image_id = await service.pull(f"registry.example/{name}")
        root = Path(service.trees(service.resolve(image_id))[0])
        assert (root / "big").read_bytes() == BIG


async def test_corrupt_bytes_everywhere(registry: Registry, image: tuple[str, str], node: Node, start: StartService) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule(f"/blobs/{digest}", corrupt=True))
        service = await start()
        error = await failure(service.pull(f"{proxy.host}/{name}"))
        assert f"blob {digest} is corrupt" in error.message
        assert service.list() == []
        await service.settle()
        assert [x for x in node.leftovers() if not x.startswith("ingest/")] == []


async def test_a_wrong_manifest_digest(registry: Registry, image: tuple[str, str], start: StartService) -> None:
    """It is whole and means the same, but it is not what was asked for."""
    service = await start()
    honest = service.resolve(await service.pull(f"{registry.host}/{image[0]}"))
    [_, digest] = honest.repo_digests[0].split("@")
    await service.remove(honest.id)
    repository = image[0].partition(":")[0]
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule("GET .*/manifests/sha256", replace=(b'{"schemaVersion": 2', b'{"schemaVersion":2 ')))
        error = await failure(service.pull(f"{proxy.host}/{repository}@{digest}"))
        assert error.code is Code.UNKNOWN
        assert f"instead of {digest}" in error.message
        assert service.list() == []


async def test_a_wrong_digest_in_an_answer_without_a_body(start: StartService) -> None:
    """Where the image is here already a HEAD tells whether it is still the same one."""
    async with FakeRegistry() as registry:
        digest = registry.image("a", "v1", [tar([Member("x", b"1")])])
        service = await start()
        await service.pull(f"{registry.host}/a@{digest}")
        other = "sha256:" + "0" * 64
        registry.hook = lambda request: (
            web.Response(headers={"Docker-Content-Digest": other}) if request.method == "HEAD" else None
        )
        error = await failure(service.pull(f"{registry.host}/a@{digest}"))
        assert error.code is Code.UNKNOWN
        assert f"it answers for {other} instead of {digest}" in error.message


async def test_a_wrong_manifest_of_an_index(start: StartService) -> None:
    async with FakeRegistry() as registry:
        digest = registry.image("a", "v1", [tar([Member("x", b"1")])])
        media_type, raw = registry.manifests["a"][digest]
        entry = {"mediaType": media_type, "digest": digest, "size": len(raw)}
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
        registry.manifest("a", "many", index)
        registry.manifests["a"][digest] = (media_type, raw + b" ")
        service = await start()
        error = await failure(service.pull(f"{registry.host}/a:many"))
        assert error.code is Code.UNKNOWN
        assert f"instead of {digest}" in error.message


@pytest.mark.parametrize(("body", "limit"), [("manifest", MAX_MANIFEST_BYTES), ("token", MAX_TOKEN_REPLY_BYTES)])
async def test_a_body_without_end_is_read_to_its_limit(start: StartService, body: str, limit: int) -> None:
    async with FakeRegistry() as registry:

        async def endless(request: web.Request) -> web.StreamResponse:
            reply = web.StreamResponse()
            await reply.prepare(request)
            for _ in range(4 * limit >> 16):
                await reply.write(b" " * (1 << 16))
            return reply

        def hook(request: web.Request) -> Any:
            if body == "token" and request.path != "/token":
                asks = f'Bearer realm="http://{registry.host}/token",service="s"'
                return web.Response(status=401, headers={"WWW-Authenticate": asks})
            return endless(request)

        registry.hook = hook
        error = await failure((await start()).pull(f"{registry.host}/a:v1"))
        assert f"its {body} is longer than {limit} bytes" in error.message


async def test_retries_while_a_registry_is_overloaded(
    registry: Registry, image: tuple[str, str], start: StartService
) -> None:
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule("/manifests/", times=2, status=503))
        proxy.rules.append(Rule("/blobs/", times=2, status=429))
        service = await start()
        await service.pull(f"{proxy.host}/{image[0]}")


async def test_no_byte_for_too_long(registry: Registry, image: tuple[str, str], start: StartService) -> None:
    async with FaultProxy(registry.host) as proxy:
        stall = asyncio.Event()
        proxy.rules.append(Rule(f"/blobs/{image[1]}", times=1, stall=stall))
        service = await start(pull_progress_timeout=0.2)
        await service.pull(f"{proxy.host}/{image[0]}")
        assert proxy.reached.is_set()
        assert proxy.count(f"/blobs/{image[1]}") == 2
        stall.set()


async def test_a_cancelled_pull_stops_and_leaves_its_partial_download(
    registry: Registry, image: tuple[str, str], node: Node, start: StartService
) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule(f"/blobs/{digest}", times=1, stall=asyncio.Event()))
        service = await start()
        waiters = [asyncio.create_task(service.pull(f"{proxy.host}/{name}")) for _ in range(2)]
        await proxy.reached.wait()
        waiters[0].cancel()
        await asyncio.wait([waiters[0]])
        assert len(service.running_pulls()) == 1
        waiters[1].cancel()
        await asyncio.wait([waiters[1]])
        assert service.running_pulls() == []
        await service.settle()
        assert [x for x in node.leftovers() if not x.startswith("ingest/")] == []
        await service.pull(f"{proxy.host}/{name}")


async def test_a_registry_that_hangs_holds_up_nobody_else(
    layout: Layout, registry: Registry, image: tuple[str, str], start: StartService
) -> None:
    name = "faults/hanging:v1"
    layout.image("hanging", [tar([Member(f"f{i}", os.urandom(1 << 20))]) for i in range(6)])
    layout.push("hanging", f"{registry.host}/{name}")
    async with FaultProxy(registry.host) as proxy:
        stall = asyncio.Event()
        proxy.rules.append(Rule("GET .*/hanging/blobs/", stall=stall))
        proxy.rules.insert(0, Rule("GET .*/hanging/blobs/", times=1))
        service = await start()
        hanging = asyncio.create_task(service.pull(f"{proxy.host}/{name}"))
        await proxy.reached.wait()
        await service.pull(f"{proxy.host}/{image[0]}")
        assert not hanging.done()
        stall.set()
        await hanging


async def test_the_end_of_the_daemon_ends_pulls(
    registry: Registry, image: tuple[str, str], node: Node, start: StartService
) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule(f"/blobs/{digest}", times=1, stall=asyncio.Event()))
        service = await start()
        waiter = asyncio.create_task(service.pull(f"{proxy.host}/{name}"))
        await proxy.reached.wait()
        await service.close()
        await asyncio.wait([waiter])
        assert waiter.cancelled()


async def test_start_removes_half_made_layers(node: Node, start: StartService) -> None:
    for name in ("new-1/fs/sub", "old-2/fs", "0123/fs"):
        (node.root / "layers" / name).mkdir(parents=True)
    service = await start()
    await service.settle()
    assert list((node.root / "layers").iterdir()) == []


BAD_LAYERS = {
    "dotdot": ([Member("../evil", b"x")], "`..`"),
    "dotdot inside": ([directory("a/"), Member("a/../../evil", b"x")], "`..`"),
    "link out": ([hardlink("x", "../../etc/shadow")], "`..`"),
    "link to nothing": ([hardlink("x", "nowhere")], "which is nowhere"),
    "file as directory": ([Member("a", b""), Member("a/b", b"")], "not a directory"),
    "loop": ([symlink("l", "l"), Member("l/x", b"")], "symbolic links"),
    "whiteout of dotdot": ([Member(".wh...", b"")], "whiteout of nothing"),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
async def test_hostile_layers_are_refused(
    layout: Layout, registry: Registry, node: Node, start: StartService, case: str
) -> None:
    members, text = BAD_LAYERS[case]
    name = f"{registry.host}/hostile/{case.replace(' ', '-')}:v1"
    layout.image("v1", [tar([Member("base", b"")]), tar(members)])
    layout.push("v1", name)
    service = await start()
    error = await failure(service.pull(name))
    assert error.code is Code.INVALID_ARGUMENT
    assert text in error.message
    assert "layer sha256:" in error.message
    await service.settle()
    assert node.leftovers() == []
    assert service.list() == []


@pytest.mark.parametrize("target", ["/", "/etc", "../../../../../../../..", "../.."])
async def test_a_symbolic_link_leads_nowhere_out(
    layout: Layout, registry: Registry, node: Node, start: StartService, tmp_path: Path, target: str
) -> None:
    """Followed from the layer's root, as a container would follow it."""
    name = f"{registry.host}/hostile/through:v1"
    layout.image("v1", [tar([symlink("out", target), Member("out/crisp-was-here", b"x")]), tar([Member("/absolute", b"y")])])
    layout.push("v1", name)
    service = await start()
    image = service.resolve(await service.pull(name))
    top, bottom = map(Path, service.trees(image))
    place = bottom / "etc" if target == "/etc" else bottom
    assert (place / "crisp-was-here").read_bytes() == b"x"
    assert (top / "absolute").read_bytes() == b"y"
    assert not os.path.exists("/crisp-was-here")
    assert not os.path.exists("/etc/crisp-was-here")
    assert not os.path.exists("/absolute")


async def test_overlay_attributes_cannot_be_smuggled_in(layout: Layout, registry: Registry, start: StartService) -> None:
    name = f"{registry.host}/hostile/xattr:v1"
    smuggled = {"trusted.overlay.redirect": b"/other", "trusted.overlay.metacopy": b"", "user.fine": b"1"}
    layout.image("v1", [tar([Member("x", b"", xattrs=smuggled), directory("d/", xattrs=smuggled)])])
    layout.push("v1", name)
    service = await start()
    root = service.trees(service.resolve(await service.pull(name)))[0]
    for path in (f"{root}/x", f"{root}/d"):
        assert os.listxattr(path) == ["user.fine"]


async def test_bombs(layout: Layout, registry: Registry, node: Node, start: StartService) -> None:
    name = f"{registry.host}/hostile/bomb:v1"
    layout.image("v1", [tar([Member("zeros", bytes(20 << 20))])])
    layout.push("v1", name)
    for limits, text in (
        (Limits(layer_bytes=10 << 20), "limit of 10485760 bytes"),
        (Limits(inflate_ratio=10, inflate_ratio_floor=1 << 20), "a bomb"),
        (Limits(layer_entries=0), "more than 0 entries"),
        (Limits(blob_bytes=100), "above this node's limit"),
    ):
        service = await start(limits=limits)
        error = await failure(service.pull(name))
        assert text in error.message
        await service.settle()
        assert node.leftovers() == []


@pytest.mark.parametrize("wrong", ["diff id", "truncated", "count", "not json", "config digest"])
async def test_documents_that_lie(layout: Layout, registry: Registry, node: Node, start: StartService, wrong: str) -> None:
    layer = tar([Member("x", b"content" * 100)])
    described = layout.layer(layer)
    diff_ids = [sha256(layer)]
    if wrong == "diff id":
        diff_ids = ["sha256:" + "1" * 64]
    elif wrong == "truncated":
        described = layout.blob(gzip.compress(layer)[:-20], f"{OCI}.layer.v1.tar+gzip")
    elif wrong == "count":
        diff_ids *= 2
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    raw = b"{nonsense" if wrong == "not json" else config.encode()
    configured = layout.blob(raw, f"{OCI}.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": configured,
        "layers": [described],
    }
    layout.add("v1", layout.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json"))
    name = f"hostile/lies-{wrong.replace(' ', '-')}:v1"
    layout.push("v1", f"{registry.host}/{name}")
    async with FaultProxy(registry.host) as proxy:
        if wrong == "config digest":
            proxy.rules.append(Rule(f"/blobs/{configured['digest']}", corrupt=True))
        service = await start()
        error = await failure(service.pull(f"{proxy.host}/{name}"))
    expected = {
        "diff id": "where the image's configuration says",
        "truncated": "gzip data ends too early",
        "count": "has 1 layers, its configuration 2",
        "not json": "is not JSON",
        "config digest": "is corrupt",
    }
    assert expected[wrong] in error.message
    await service.settle()
    assert [x for x in node.leftovers() if wrong != "config digest"] == []


@pytest.fixture
def small_disk(node: Node) -> Iterator[None]:
    """The node's directory on a file system of 12 MiB."""
    node.root.mkdir(parents=True)
    image = node.root.with_suffix(".img")
    with image.open("wb") as out:
        out.truncate(12 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, node.root], check=True)
    yield
    subprocess.run(["umount", node.root], check=True)


@pytest.mark.usefixtures("small_disk")
async def test_a_full_disk(registry: Registry, image: tuple[str, str], node: Node, start: StartService) -> None:
    service = await start()
    error = await failure(service.pull(f"{registry.host}/{image[0]}"))
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert "no space left on device" in error.message
    assert str(node.root) in error.message
    await service.settle()
    assert node.leftovers() == []
    await service.close()


@pytest.fixture
def failing_disk(node: Node) -> Iterator[Path]:
    """The node's directory on a disk that promises 64 MiB and can write 12: what is more fails when it is written back."""
    backing = node.root.with_suffix(".tmpfs")
    node.root.mkdir(parents=True)
    backing.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", backing], check=True)
    image = backing / "disk.img"
    with image.open("wb") as out:
        out.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, node.root], check=True)
    yield image
    subprocess.run(["umount", node.root], check=True)
    subprocess.run(["umount", "-l", backing], check=True)  # the loop device lets go of it a moment later


@pytest.mark.parametrize("seen_before", [False, True])
async def test_a_write_error_that_a_sync_has_seen_fails_the_pull(
    failing_disk: Path, layout: Layout, registry: Registry, node: Node, start: StartService, seen_before: bool
) -> None:
    name = f"{registry.host}/faults/written-{seen_before}:v1".lower()
    layout.image("w", [tar([Member(f"big{i}", os.urandom(6 << 20))]) for i in range(3)], compression="none")
    layout.push("w", name)
    service = await start()
    if seen_before:
        publish = service._layers.publish

        async def late(*args: object) -> None:
            """As if the sync in the background had been the one to see it."""
            await service._layers._sync_early()
            await publish(*args)  # type: ignore[arg-type]

        service._layers.publish = late
    error = await failure(service.pull(name))
    assert error.code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)
    assert str(node.root) in error.message
    assert service.list() == []
    await service.settle()
    await service.close()


async def test_partial_downloads_count_and_go_in_time(
    registry: Registry, image: tuple[str, str], node: Node, start: StartService
) -> None:
    name, digest = image
    async with FaultProxy(registry.host) as proxy:
        proxy.rules += [Rule(f"/blobs/{digest}", times=1, cut_after=4 << 20), Rule(f"/blobs/{digest}", times=1, status=403)]
        service = await start(keep_partial=2.0)
        await failure(service.pull(f"{proxy.host}/{name}"))
        await service.settle()
        assert (await service.fs_info()).used_bytes > 1 << 20
        async with asyncio.timeout(60):
            while node.leftovers():
                await asyncio.sleep(0.05)
        assert (await service.fs_info()).used_bytes < 1 << 20


async def test_a_skeleton_counts_and_is_no_larger_than_its_layer(
    layout: Layout, registry: Registry, node: Node, start: StartService
) -> None:
    """A layer whose archive is all tail: 8 MiB that make no file."""
    layout.image("bones", [tar([Member("x", b"1")]) + os.urandom(8 << 20)])
    layout.push("bones", f"{registry.host}/faults/bones:v1")
    service = await start()
    await service.pull(f"{registry.host}/faults/bones:v1")
    used = (await service.fs_info()).used_bytes
    taken = int(subprocess.run(["du", "-s", "-B1", node.root], capture_output=True, check=True).stdout.split()[0])
    assert used < 1 << 20
    assert taken < 2 << 20
