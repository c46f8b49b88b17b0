"""Import, export, commit, push, verify, and what becomes of layers when images go."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from imagesvc.build.commit import Changes
from imagesvc.service import ImageService
from imagesvc.store.images import OciConfig
from proto.errors import Code
from tests.images.conftest import Node, StartService
from tests.images.fault_proxy import FaultProxy, Rule
from tests.images.image_builder import Layout, Member, busybox, directory, hardlink, tar
from tests.images.layer_stack import describe, overlay
from tests.images.registry_server import Registry
from tests.images.test_pull import failure

pytestmark = pytest.mark.root

BIG = os.urandom(3 << 20)
LAYERS = [
    busybox(directory("opt/"), Member("opt/drop", b"1"), Member("opt/big", BIG), Member("suid", b"x", mode=0o4755, uid=3)),
    tar([directory("opt/"), Member("opt/.wh.drop"), Member("opt/caf\udce9", b"latin"), hardlink("opt/sh", "bin/busybox")]),
]


async def import_layout(service: ImageService, layout: Layout, name: str = "example.com/a/b:v1") -> str:
    layout.image("v1", LAYERS, {"Cmd": ["sh"]})
    (image_id,) = await service.import_archive(str(layout.path), name)
    return image_id


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "docker-archive.gz", "layout"])
async def test_import(layout: Layout, node: Node, start: StartService, tmp_path: Path, form: str) -> None:
    layout.image("v1", LAYERS)
    source = tmp_path / "image.tar"
    kind = form.removesuffix(".gz")
    if form == "layout":
        source = layout.path
    else:
        suffix = ":example.com/x/y:v2" if kind == "docker-archive" else ":v1"
        subprocess.run(
            ["skopeo", "copy", "-q", "--insecure-policy", f"oci:{layout.path}:v1", f"{kind}:{source}{suffix}"], check=True
        )
    if form.endswith(".gz"):
        subprocess.run(["gzip", source], check=True)
        source = tmp_path / "image.tar.gz"
    service = await start()
    (image_id,) = await service.import_archive(str(source), "example.com/x/y:v2")
    image = service.resolve("example.com/x/y:v2")
    assert image.id == image_id
    top, bottom = map(Path, service.trees(image))
    assert (bottom / "opt/big").read_bytes() == BIG
    assert os.path.samefile(top / "bin/busybox", top / "opt/sh")
    assert b"caf\xe9" in os.listdir(os.fsencode(top / "opt"))
    await service.settle()
    assert node.leftovers() == []


@pytest.mark.parametrize("form", ["oci", "docker"])
async def test_export_without_blobs_gives_the_same_image(
    layout: Layout, node: Node, start: StartService, tmp_path: Path, form: str
) -> None:
    service = await start()
    image_id = await import_layout(service, layout)
    archive = tmp_path / "out.tar"
    await service.export(["example.com/a/b:v1"], str(archive), form)
    before = [describe(Path(d), times=False) for d in service.trees(service.resolve(image_id))]
    assert (await failure(service.export([image_id], str(archive), form))).code is Code.ALREADY_EXISTS
    await service.remove(image_id)
    await service.settle()
    assert list((node.root / "layers").iterdir()) == []
    assert await service.import_archive(str(archive)) == [image_id]
    image = service.resolve("example.com/a/b:v1")
    assert [describe(Path(d), times=False) for d in service.trees(image)] == before
    kind = {"oci": "oci-archive", "docker": "docker-archive"}[form]
    said = subprocess.run(["skopeo", "inspect", "--config", f"{kind}:{archive}"], capture_output=True, check=True).stdout
    assert json.loads(said)["rootfs"]["diff_ids"] == list(image.diff_ids)
    assert node.leftovers() == []


async def test_an_image_is_built_in_three_steps_pushed_and_pulled_back(
    registry: Registry, node: Node, start: StartService, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    (plain / "bin").mkdir(parents=True)
    (plain / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (plain / "bin/busybox").chmod(0o755)
    (plain / "bin/sh").symlink_to("busybox")
    service = await start()
    await service.add_rootfs("base", str(plain), OciConfig(cmd=("sh",), env=("A=1",)))
    steps = (
        "mkdir -p /srv/data && echo one > /srv/data/one && echo two > /srv/data/two",
        "rm /srv/data/one && ln /srv/data/two /srv/data/also && echo 3 > '/three '",
        "rm -r /srv/data && mkdir /srv/data && echo four > /srv/data/four && chmod 4711 '/three '",
    )
    name = "base"
    for number, step in enumerate(steps):
        image = service.resolve(name)
        area = tmp_path / f"area{number}"
        for part in ("upper", "work", "merged"):
            (area / part).mkdir(parents=True)
        lower = ":".join(map(str, service.trees(image)))
        options = f"lowerdir={lower},upperdir={area}/upper,workdir={area}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, area / "merged"], check=True)
        try:
            subprocess.run(
                [
                    "chroot",
                    area / "merged",
                    "/bin/busybox",
                    "sh",
                    "-c",
                    f"export PATH=/bin; B=/bin/busybox; {_applets(step)}",
                ],
                check=True,
            )
            expected = describe(area / "merged")
        finally:
            subprocess.run(["umount", area / "merged"], check=True)
        name = f"{registry.host}/built/step:v{number}"
        await service.commit(image, str(area / "upper"), name, Changes(comment=step))
    built = service.resolve(name)
    assert len(built.layers) == 4
    assert built.config.cmd == ("sh",)
    await service.push(name)
    await service.remove(name)
    for number in range(2):
        await service.remove(f"{registry.host}/built/step:v{number}")
    await service.remove("base")
    await service.settle()
    assert service.list() == []
    assert list((node.root / "layers").iterdir()) == []

    back = service.resolve(await service.pull(name))
    assert back.id == built.id
    with overlay([Path(d) for d in service.trees(back)], tmp_path / "back") as merged:
        assert describe(merged) == expected
        ran = subprocess.run(["chroot", merged, "/bin/sh", "-c", "/bin/busybox cat /srv/data/four"], capture_output=True)
        assert ran.stdout == b"four\n"
    history = json.loads((node.root / "blobs/sha256" / back.id[7:]).read_bytes())["history"]
    assert len(history) == 4


def _applets(step: str) -> str:
    return " && ".join(f"$B {part}" for part in step.split(" && "))


async def test_commit_is_reproducible(layout: Layout, start: StartService, tmp_path: Path) -> None:
    service = await start()
    base = service.resolve(await import_layout(service, layout))
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    (upper / "d/file").write_text("x")
    (upper / "skipped").write_text("y")
    changes = Changes(created=1_700_000_000, excluded=("/skipped",))
    first = await service.commit(base, str(upper), "local/one", changes)
    (upper / "d/file").touch()
    assert await service.commit(base, str(upper), "local/two", changes) == first
    root = Path(service.trees(service.resolve(first))[0])
    assert sorted(os.listdir(root)) == ["d"]
    assert (root / "d/file").stat().st_mtime == 1_700_000_000


async def test_push_uses_what_the_registry_has(
    layout: Layout, registry: Registry, start: StartService, tmp_path: Path
) -> None:
    layout.image("v1", LAYERS)
    layout.push("v1", f"{registry.host}/push/origin:v1")
    async with FaultProxy(registry.host) as proxy:
        service = await start()
        await service.pull(f"{proxy.host}/push/origin:v1")
        proxy.requests.clear()
        digest = await service.push(f"{proxy.host}/push/origin:v1", f"{proxy.host}/push/copy:v1")
        assert proxy.count("PATCH") == 0
        assert proxy.count("POST .*/uploads/") == 3 or proxy.count("PUT .*/uploads/") <= 1
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/push/copy:v1"],
        capture_output=True,
        check=True,
    ).stdout
    image = service.resolve(f"{proxy.host}/push/copy@{digest}")
    assert image is not None
    assert [layer["digest"] for layer in json.loads(raw)["layers"]] == [layer.digest for layer in image.layers]


async def test_push_to_a_registry_that_knows_nothing_of_it(layout: Layout, registry: Registry, start: StartService) -> None:
    service = await start()
    image_id = await import_layout(service, layout, f"{registry.host}/push/fresh:v1")
    await service.push(image_id, f"{registry.host}/push/fresh:v1")
    await service.remove(image_id)
    assert await service.pull(f"{registry.host}/push/fresh:v1") == image_id


async def test_push_refused(layout: Layout, registry: Registry, start: StartService) -> None:
    async with FaultProxy(registry.host) as proxy:
        proxy.rules.append(Rule("POST", status=403))
        service = await start()
        await import_layout(service, layout)
        error = await failure(service.push("example.com/a/b:v1", f"{proxy.host}/push/no:v1"))
        assert error.code is Code.PERMISSION_DENIED
        assert (await failure(service.push("nothing/here"))).code is Code.NOT_FOUND


async def test_verify_drops_only_what_is_bad(layout: Layout, node: Node, start: StartService) -> None:
    service = await start()
    damaged = await import_layout(service, layout)
    layout.image("other", [tar([directory("./"), Member("fine", b"y")])])
    index = json.loads((layout.path / "index.json").read_text())
    index["manifests"] = index["manifests"][1:]
    (layout.path / "index.json").write_text(json.dumps(index))
    (other,) = await service.import_archive(str(layout.path), "example.com/other:v1")
    report = await service.verify()
    assert report.good
    assert (report.layers, report.unchecked) == (3, [])

    victim = Path(service.lower_dirs(service.resolve(damaged))[1])
    with victim.open("r+b") as stream:
        stream.seek(victim.read_bytes().index(BIG[:4096]))
        stream.write(b"damage")
    assert not (await service.verify(repair=False)).good
    assert service.resolve(damaged) is not None
    report = await service.verify()
    assert list(report.bad_layers) == [victim.stem]
    assert report.dropped_images == [damaged]
    assert [image.id for image in service.list()] == [other]
    await service.settle()
    assert len(list((node.root / "layers").iterdir())) == 1
    assert (await service.verify()).good


async def test_layers_in_use_outlive_their_image_and_a_restart(layout: Layout, node: Node, start: StartService) -> None:
    service = await start()
    image_id = await import_layout(service, layout)
    image = service.resolve(image_id)
    service.acquire(image, "container")
    await service.remove("example.com/a/b:v1")
    await service.settle()
    assert service.resolve(image_id) is None
    assert service.list() == []
    assert all(os.path.exists(d) for d in service.lower_dirs(image))
    await service.close()

    again = await start()
    assert again.list() == []
    kept = again.image_of(image_id)
    again.acquire(kept, "container")
    again.drop_unused()
    await again.settle()
    assert all(os.path.exists(d) for d in again.lower_dirs(kept))
    again.release("container")
    await again.settle()
    assert list((node.root / "layers").iterdir()) == []
    assert node.records.documents == {}
    assert list((node.root / "blobs/sha256").iterdir()) == []


async def test_removal_keeps_shared_layers(layout: Layout, node: Node, start: StartService) -> None:
    service = await start()
    first = await import_layout(service, layout)
    layout.image("v1", [LAYERS[0]])
    (second,) = await service.import_archive(str(layout.path), "example.com/second:v1")
    await service.remove(first)
    await service.settle()
    assert len(list((node.root / "layers").iterdir())) == 1
    assert all(os.path.exists(d) for d in service.lower_dirs(service.resolve(second)))
    await service.remove("example.com/never-there")
    await service.remove(second)
    assert (await service.fs_info()).used_bytes == 0


async def test_names_come_and_go(layout: Layout, start: StartService) -> None:
    service = await start(pinned=("example.com/pinned/*", "busybox"))
    image_id = await import_layout(service, layout)
    assert not service.resolve(image_id).pinned
    await service.tag(image_id, "example.com/pinned/x")
    assert service.resolve("example.com/pinned/x:latest").pinned
    await service.untag("example.com/pinned/x")
    assert not service.resolve(image_id).pinned
    await service.tag(image_id, "busybox")
    assert service.resolve(image_id).pinned


async def test_add_rootfs_copies_nothing(node: Node, start: StartService, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    service = await start()
    image_id = await service.add_rootfs("my/root", str(plain), OciConfig(user="7:8"))
    assert await service.add_rootfs("my/root", str(plain), OciConfig(user="7:8")) == image_id
    image = service.resolve("my/root")
    assert (image.id, image.uid, image.size > 0) == (image_id, 7, True)
    assert service.lower_dirs(image) == [str(plain)]
    assert (await failure(service.add_rootfs("x", "relative"))).code is Code.INVALID_ARGUMENT
    assert (await failure(service.push("my/root"))).code is Code.FAILED_PRECONDITION
    await service.remove("my/root")
    assert plain.is_dir()


async def test_measure_counts_hard_links_once(start: StartService, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a").write_bytes(b"x" * 10000)
    os.link(tmp_path / "m/a", tmp_path / "m/b")
    service = await start()
    assert await service.measure(str(tmp_path / "m")) == (12288, 1)


async def test_what_is_no_archive(start: StartService, tmp_path: Path) -> None:
    service = await start()
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w"):
        pass
    (tmp_path / "text").write_text("hello")
    for path in (empty, tmp_path / "text", tmp_path / "missing"):
        error = await failure(service.import_archive(str(path)))
        assert error.code is Code.INVALID_ARGUMENT, path
        assert str(path) in error.message


async def test_paths_as_long_as_they_may_be_are_exported_verified_and_removed(
    layout: Layout, registry: Registry, node: Node, start: StartService, tmp_path: Path
) -> None:
    """4000 bytes below the layer are more than PATH_MAX from the root of the disk."""
    name = "/".join(["d" * 199] * 20)
    layout.image("long", [tar([Member(f"{name}/file", b"x" * 1000)])])
    layout.push("long", f"{registry.host}/transfer/long:v1")
    service = await start()
    await service.pull(f"{registry.host}/transfer/long:v1")
    assert (await service.verify()).good
    await service.export([f"{registry.host}/transfer/long:v1"], str(tmp_path / "out.tar"))
    await service.remove(f"{registry.host}/transfer/long:v1")
    await service.settle()
    assert list((node.root / "layers").iterdir()) == []
    assert node.leftovers() == []
