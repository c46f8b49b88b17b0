"""Pulling from a real registry: what comes of it, and what is on disk afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imagesvc.transfer.progress import LayerProgress, PullProgress
from proto.errors import Code, CrispError
from tests.harness.host import free_port
from tests.images.conftest import Node, StartService
from tests.images.fault_proxy import FaultProxy, Rule
from tests.images.image_builder import Layout, Member, busybox, directory, hardlink, sha256, symlink, tar
from tests.images.layer_stack import describe, overlay
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root

BIG = os.urandom(6 << 20)


async def failure(awaitable: Any) -> CrispError:
    with pytest.raises(CrispError) as caught:
        await awaitable
    return caught.value


@pytest.fixture
def simple(layout: Layout, registry: Registry) -> tuple[str, str]:
    """A two-layer image; its reference, and its manifest's digest."""
    layers = [busybox(), tar([directory("app/"), Member("app/data", b"hello\n"), Member("app/big", BIG)])]
    digest = layout.image("v1", layers, {"Cmd": ["sh"], "User": "1000:1", "Env": ["A=b"], "Volumes": {"/v": {}}})
    reference = f"{registry.host}/pull/simple:{layout.path.parent.name.lower()}"
    layout.push("v1", reference)
    return reference, digest


async def test_pull_unpacks_and_describes_the_image(simple: tuple[str, str], start: StartService, tmp_path: Path) -> None:
    reference, digest = simple
    service = await start()
    image_id = await service.pull(reference)
    image = service.resolve(reference)
    assert image is not None
    assert (image.id, image.repo_tags) == (image_id, (reference,))
    assert image.repo_digests == (f"{reference.rpartition(':')[0]}@{digest}",)
    assert (image.uid, image.username, image.config.env, image.config.cmd) == (1000, "", ("A=b",), ("sh",))
    assert image.config.volumes == ("/v",)
    assert image.size > len(BIG)
    assert service.list() == [image]
    roots = [Path(d) for d in service.trees(image)]
    with overlay(roots, tmp_path / "merged") as merged:
        assert (merged / "app/big").read_bytes() == BIG
        assert subprocess.run(["chroot", merged, "/bin/echo", "ran"], capture_output=True, check=True).stdout == b"ran\n"


async def test_attributes_of_directories_outlast_layers_that_name_them_again(
    layout: Layout, registry: Registry, start: StartService, tmp_path: Path
) -> None:
    below = tar([directory("app/", xattrs={"user.kept": b"1", "user.changed": b"1"}), directory("bare/")])
    other = tar([directory("app/"), Member("other", b"")])
    above = tar([directory("app/", 0o700, xattrs={"user.changed": b"2"}), directory("bare/"), Member("app/file", b"")])
    service = await start()
    found = []
    for tag, layers in (("alone", [other, above]), ("upon", [below, above]), ("again", [below, above, other])):
        layout.image(tag, layers)
        layout.push(tag, f"{registry.host}/pull/attributes:{tag}")
        await service.pull(f"{registry.host}/pull/attributes:{tag}")
        image = service.resolve(f"{registry.host}/pull/attributes:{tag}")
        with overlay([Path(d) for d in service.trees(image)], tmp_path / tag) as merged:
            found.append(describe(merged)[b"app"][-1])
    assert found[0] == {"user.changed": b"2"}
    assert found[1] == found[2] == {"user.kept": b"1", "user.changed": b"2"}


async def test_every_way_to_name_an_image(simple: tuple[str, str], start: StartService) -> None:
    reference, digest = simple
    service = await start()
    image_id = await service.pull(reference)
    repository = reference.rpartition(":")[0]
    for name in (reference, image_id, image_id[7:], image_id[7:19], f"{repository}@{digest}", f"{reference}@{digest}"):
        assert service.resolve(name).id == image_id, name
    for name in ("nothing", "sha256:" + "0" * 64, repository + ":other", "UPPER/case", ""):
        assert service.resolve(name) is None, name


async def test_pull_by_digest_and_by_another_tag_adds_names(simple: tuple[str, str], start: StartService) -> None:
    reference, digest = simple
    service = await start()
    repository = reference.rpartition(":")[0]
    first = await service.pull(f"{repository}@{digest}")
    assert service.resolve(first).repo_tags == ()
    assert await service.pull(reference) == first
    image = service.resolve(first)
    assert (image.repo_tags, image.repo_digests) == ((reference,), (f"{repository}@{digest}",))


async def test_a_moved_tag_leaves_the_old_image_without_it(layout: Layout, registry: Registry, start: StartService) -> None:
    reference = f"{registry.host}/pull/moving:v1"
    service = await start()
    ids = []
    for content in (b"one", b"two"):
        layout.image("v1", [tar([Member("file", content)])])
        layout.push("v1", reference)
        ids.append(await service.pull(reference))
    old, new = map(service.resolve, ids)
    assert old.repo_tags == ()
    assert old.repo_digests
    assert new.repo_tags == (reference,)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_compressions(layout: Layout, registry: Registry, start: StartService, compression: str) -> None:
    layout.image("v1", [tar([Member("file", BIG)])], compression=compression)
    reference = f"{registry.host}/pull/{compression}:v1"
    layout.push("v1", reference)
    service = await start()
    await service.pull(reference)
    root = service.trees(service.resolve(reference))[0]
    assert (Path(root) / "file").read_bytes() == BIG


async def test_docker_schema_2(layout: Layout, registry: Registry, start: StartService) -> None:
    layout.image("v1", [busybox()])
    reference = f"{registry.host}/pull/schema2:v1"
    options = ("-q", "--insecure-policy", "--format", "v2s2", "--dest-tls-verify=false")
    subprocess.run(
        ["skopeo", "copy", *options, f"oci:{layout.path}:v1", f"docker://{reference}"],
        check=True,
    )
    service = await start()
    await service.pull(reference)
    assert "bin" in os.listdir(service.trees(service.resolve(reference))[0])


async def test_an_index_leads_to_the_wanted_platform(layout: Layout, registry: Registry, start: StartService) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        digest = layout.image(architecture, [tar([Member("arch", architecture.encode())])], architecture=architecture)
        entries.append((digest, f"linux/{architecture}"))
    top = layout.index("multi", entries)
    reference = f"{registry.host}/pull/multi:v1"
    layout.push("multi", reference)
    other = await start(platform="linux/s390x")
    error = await failure(other.pull(reference))
    assert error.code is Code.NOT_FOUND
    assert "linux/amd64, linux/arm64" in error.message
    service = await start(platform="linux/arm64")
    image = service.resolve(await service.pull(reference))
    assert (Path(service.trees(image)[0]) / "arch").read_bytes() == b"arm64"
    assert image.repo_digests == (f"{registry.host}/pull/multi@{top}",)
    assert image.manifest == entries[1][0]


async def test_layers_that_are_here_are_not_fetched_again(layout: Layout, registry: Registry, start: StartService) -> None:
    shared = tar([directory("./"), Member("shared", BIG)])
    async with FaultProxy(registry.host) as proxy:
        service = await start()
        for name in ("one", "two"):
            layout.image(name, [shared, tar([Member(name, b"x")])])
            layout.push(name, f"{registry.host}/pull/share:{name}")
            await service.pull(f"{proxy.host}/pull/share:{name}")
        digest = layout.layer(shared)["digest"]
        assert proxy.count(f"GET .*/blobs/{digest}") == 1
    one, two = (service.resolve(f"{proxy.host}/pull/share:{name}") for name in ("one", "two"))
    assert service.lower_dirs(one)[1] == service.lower_dirs(two)[1]
    info = await service.fs_info()
    assert 2 * len(BIG) > info.used_bytes > len(BIG)


async def test_the_same_pull_twice_runs_once(simple: tuple[str, str], registry: Registry, start: StartService) -> None:
    reference = simple[0]
    async with FaultProxy(registry.host) as proxy:
        service = await start()
        name = reference.replace(registry.host, proxy.host)
        ids = await asyncio.gather(*(service.pull(name) for _ in range(5)))
        assert len(set(ids)) == 1
        assert proxy.count("GET .*/manifests/") == 1
        assert not service.running_pulls()


async def test_pulls_of_images_that_share_a_layer_fetch_it_once(
    layout: Layout, registry: Registry, start: StartService
) -> None:
    shared = tar([directory("./"), Member("shared", BIG), Member(".wh.gone")])
    names = [f"n{i}" for i in range(4)]
    for name in names:
        layout.image(name, [shared, tar([Member(f"x/{name}", b"x"), Member("x/.wh.y"), hardlink("link", "shared")])])
        layout.push(name, f"{registry.host}/pull/joint:{name}")
    async with FaultProxy(registry.host) as proxy:
        service = await start()
        await asyncio.gather(*(service.pull(f"{proxy.host}/pull/joint:{name}") for name in names))
        digest = layout.layer(shared)["digest"]
        assert proxy.count(f"GET .*/blobs/{digest}") == 1
        for name in names:
            roots = [Path(d) for d in service.trees(service.resolve(f"{proxy.host}/pull/joint:{name}"))]
            assert (roots[0] / "link").stat().st_size == len(BIG)
            assert sorted(os.listdir(roots[0])) == ["link", "shared", "x"]
            assert os.listdir(roots[0] / "x") == [name]


async def test_a_hundred_and_twenty_seven_layers(layout: Layout, registry: Registry, start: StartService) -> None:
    layers = [tar([directory("./"), Member(f"f{i}", str(i).encode()), Member("last", str(i).encode())]) for i in range(127)]
    layout.image("deep", layers)
    layout.push("deep", f"{registry.host}/pull/deep:v1")
    service = await start()
    image = service.resolve(await service.pull(f"{registry.host}/pull/deep:v1"))
    roots = service.trees(image)
    assert [(Path(r) / "last").read_text() for r in roots] == [str(i) for i in range(126, -1, -1)]


async def test_a_layer_that_comes_twice_is_listed_once(layout: Layout, registry: Registry, start: StartService) -> None:
    again = tar([directory("./"), Member("file", b"again")])
    empty = tar([])
    layout.image("twice", [again, empty, tar([directory("./"), Member("file", b"between")]), again, empty])
    layout.push("twice", f"{registry.host}/pull/twice:v1")
    service = await start()
    image = service.resolve(await service.pull(f"{registry.host}/pull/twice:v1"))
    roots = service.trees(image)
    assert len(roots) == 2
    assert (Path(roots[0]) / "file").read_bytes() == b"again"


async def test_an_image_without_layers_has_an_empty_root(layout: Layout, registry: Registry, start: StartService) -> None:
    layout.image("empty", [])
    layout.push("empty", f"{registry.host}/pull/empty:v1")
    service = await start()
    image = service.resolve(await service.pull(f"{registry.host}/pull/empty:v1"))
    assert image.size > 0
    assert [os.listdir(d) for d in service.trees(image)] == [[]]


async def test_the_root_directory_keeps_its_mode(layout: Layout, registry: Registry, start: StartService) -> None:
    layout.image("rooted", [tar([directory("./", 0o1700, uid=5, gid=6)]), tar([Member("x", b"")])])
    layout.push("rooted", f"{registry.host}/pull/rooted:v1")
    service = await start()
    image = service.resolve(await service.pull(f"{registry.host}/pull/rooted:v1"))
    assert service.root_owner(image) == (0o1700, 5, 6)


async def test_umoci_unpacks_the_same(layout: Layout, registry: Registry, start: StartService, tmp_path: Path) -> None:
    layers = [
        busybox(directory("opt/", 0o750, uid=7), Member("opt/keep", b"1", uid=9), Member("opt/drop", b"2")),
        tar([Member("opt/.wh.drop"), Member("opt/deep/er/file", b"3"), hardlink("bin/also", "bin/busybox")]),
        tar([directory("etc/"), Member("etc/.wh..wh..opq"), Member("etc/new", b"4"), symlink("usr", "opt")]),
        tar([Member("usr/through", b"5"), directory("dev/"), Member("dev/n", type=b"3", device=(1, 3), mode=0o666)]),
    ]
    layout.image("v1", layers)
    layout.push("v1", f"{registry.host}/pull/second:v1")
    service = await start()
    image = service.resolve(await service.pull(f"{registry.host}/pull/second:v1"))
    bundle = tmp_path / "bundle"
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout.path}:v1", bundle], check=True, capture_output=True)
    with overlay([Path(d) for d in service.trees(image)], tmp_path / "merged") as merged:
        ours, theirs = describe(merged, times=False), describe(bundle, times=False)
    assert ours == theirs


async def test_progress_tells_of_each_layer(simple: tuple[str, str], start: StartService) -> None:
    service = await start()
    states: list[tuple[str, int, int]] = []

    def watch(progress: PullProgress) -> None:
        states.append((progress.state, progress.downloaded, progress.size))

    await service.pull(simple[0], progress=watch)
    assert [s for s, *_ in states if s in ("syncing", "done")] == ["syncing", "done"]
    assert states[-1][1] == states[-1][2] > len(BIG)


async def test_what_is_here_is_being_unpacked(simple: tuple[str, str], start: StartService) -> None:
    """From the last byte on a layer is unpacking, as far as the worker has come, and not downloading at 100 %."""
    service = await start()
    seen: list[tuple[str, int, int]] = []

    def watch(progress: PullProgress) -> None:
        seen.extend((layer.state, layer.downloaded, layer.size) for layer in progress.layers)

    await service.pull(simple[0], progress=watch)
    assert not [one for one in seen if one[0] == "downloading" and one[1] == one[2]]
    assert [one for one in seen if one[0] == "unpacking"]
    assert not [one for one in seen if one[0] == "unpacking" and one[1] != one[2]]
    layer = LayerProgress("", 10, downloaded=10, unpacked=4, state="unpacking")
    assert (layer.current, LayerProgress("", 10, downloaded=6, state="downloading").current) == (4, 6)


async def test_keep_blobs_keeps_what_came(simple: tuple[str, str], node: Node, start: StartService) -> None:
    service = await start(keep_blobs=True)
    image = service.resolve(await service.pull(simple[0]))
    for layer in image.layers:
        blob = node.root / "blobs/sha256" / layer.digest[7:]
        assert sha256(blob.read_bytes()) == layer.digest
    assert node.leftovers() == []


async def test_without_keep_blobs_only_documents_stay(simple: tuple[str, str], node: Node, start: StartService) -> None:
    service = await start()
    image = service.resolve(await service.pull(simple[0]))
    kept = {"sha256:" + p.name for p in (node.root / "blobs/sha256").iterdir()}
    assert kept == {image.id, image.manifest}
    assert node.leftovers() == []


async def test_an_artifact_is_a_directory_of_its_files(layout: Layout, registry: Registry, start: StartService) -> None:
    title = "org.opencontainers.image.title"
    empty = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    files = {"weights.bin": BIG, "sub/readme.md": b"text"}
    layers = [layout.blob(data, "application/x-model", annotations={title: name}) for name, data in files.items()]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x-model",
        "config": empty,
        "layers": layers,
    }
    digest = layout.add("model", layout.blob(json.dumps(manifest).encode(), manifest["mediaType"]))
    reference = f"{registry.host}/pull/model:v1"
    layout.push("model", reference)
    service = await start()
    image = service.resolve(await service.pull(reference))
    assert (image.id, image.kind) == (digest, "artifact")
    (root,) = service.trees(image)
    assert {name: (Path(root) / name).read_bytes() for name in files} == files
    await service.remove(reference)
    assert service.list() == []


async def test_a_registry_that_is_down(node: Node, start: StartService) -> None:
    service = await start()
    error = await failure(service.pull(f"127.0.0.1:{free_port()}/some/image:v1"))
    assert error.code is Code.UNKNOWN
    assert error.message.startswith("RegistryUnavailable: ")
    assert "\n  http://127.0.0.1:" in error.message
    assert node.leftovers() == []


async def test_a_missing_image(registry: Registry, start: StartService) -> None:
    service = await start()
    error = await failure(service.pull(f"{registry.host}/no/such:v1"))
    assert error.code is Code.NOT_FOUND
    assert "MANIFEST_UNKNOWN" in error.message


async def test_a_bad_reference(start: StartService) -> None:
    service = await start()
    for name in ("", "team/UPPER", "a:b:c", "x@sha256:12", " nginx"):
        assert (await failure(service.pull(name))).code is Code.INVALID_ARGUMENT, name


async def test_pull_by_digest_of_a_checked_image_outlives_its_registry(
    simple: tuple[str, str], registry: Registry, start: StartService
) -> None:
    reference, digest = simple
    async with FaultProxy(registry.host) as proxy:
        service = await start()
        name = f"{proxy.host}/{reference.partition('/')[2].rpartition(':')[0]}@{digest}"
        image_id = await service.pull(name)
        proxy.rules.append(Rule("", status=503))
        assert await service.pull(name) == image_id
        tagged = await failure(service.pull(name.partition("@")[0] + ":" + reference.rpartition(":")[2]))
        assert tagged.message.startswith("RegistryUnavailable: ")
