"""Containers on layers that are files, and the same on directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import mounts
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness import layer_files
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until
from tests.images.image_builder import Layout, Member, busybox, directory, hardlink, symlink, tar

pytestmark = pytest.mark.root

FORMS = {"erofs": ".erofs", "directories": ""}
"""What `images.layers` may be, and what the names of layers end in then."""
APP = "example.org/app:v1"
only_files = pytest.mark.parametrize("form", ["erofs"], indirect=True)
"""Where directories have been tried often enough."""


def layered() -> list[bytes]:
    """Layers with what overlayfs has to make something of: whiteouts, an opaque directory, links to below, a new root."""
    return [
        busybox(
            *(directory("data/"), Member("data/lower", b"lower\n"), Member("data/gone", b"gone\n")),
            *(directory("opaque/"), Member("opaque/hidden", b"hidden\n")),
            *(directory("etc/deep/", 0o750, uid=7, gid=8), Member("etc/deep/file", b"deep\n", uid=7, gid=8)),
        ),
        tar(
            [
                *(Member("data/.wh.gone"), Member("data/upper", b"upper\n")),
                *(directory("opaque/"), Member("opaque/.wh..wh..opq"), Member("opaque/shown", b"shown\n")),
                *(Member("etc/deep/second", b"second\n"), hardlink("data/linked", "data/lower")),
                symlink("data/to", "upper"),
                Member("etc/passwd", b"root:x:0:0::/root:/bin/sh\nworker:x:70:71::/data:/bin/sh\n"),
                Member("etc/group", b"worker:x:71:\nextra:x:72:worker\n"),
            ]
        ),
        tar([directory("./", 0o711, uid=0), Member("data/lower", b"top\n")]),
    ]


@pytest.fixture(scope="module", params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "erofs":
        layer_files.need(Path("/var/tmp"))
    return str(request.param)


@pytest.fixture(scope="module")
def own(form: str) -> Iterator[Daemon]:
    """A daemon whose new layers are of the form."""
    running = Daemon(f'[images]\nlayers = "{form}"\n')
    try:
        yield running.start()
    finally:
        running.destroy()
        assert mounts.below(str(running.directory)) == []


@pytest.fixture
def node(own: Daemon, tmp_path: Path, form: str) -> Iterator[Kubelet]:
    """Its kubelet, with the layered image."""
    kubelet = Kubelet(own, APP)
    bring(kubelet, APP, layered(), tmp_path / "app")
    assert all(name.endswith(FORMS[form]) for name in layers_of(own))
    yield kubelet
    if own.process is None:
        own.start()
    own.remove_all()
    for image in kubelet.images.ListImages(cri.ListImagesRequest()).images:
        forget(kubelet, image.id)
    wait_until(lambda: not layers_of(own))
    assert mounted(own) == []
    assert own.leftovers() == []


def bring(kubelet: Kubelet, name: str, layers: list[bytes], base: Path, config: dict[str, str] | None = None) -> str:
    Layout(base).image(name, layers, config)
    [image] = kubelet.client.admin.ImportImages(admin.ImportImagesRequest(path=str(base))).image_ids
    return str(image)


def forget(kubelet: Kubelet, image: str) -> None:
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))


def layers_of(daemon: Daemon) -> list[str]:
    return [entry.name for entry in os.scandir(daemon.root / "layers")]


def mounted(daemon: Daemon) -> list[int]:
    """Inode numbers of the files that are mounted in the layers' namespace."""
    pinned = daemon.state / "layers" / "namespace"
    if not pinned.exists():
        return []
    script = (
        f"import os; from kernel import namespaces; namespaces.join({str(pinned)!r}, 'mnt'); "
        "print(*(name for name in os.listdir('/') if name != 'files'))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(map(int, done.stdout.split()))


def test_what_has_been_chosen_is_told(node: Kubelet, form: str) -> None:
    told = json.loads(node.runtime.Status(cri.StatusRequest(verbose=True)).info["config"])["layers"]
    assert told["form"] == ("erofs" if form == "erofs" else "directory")
    check = [sys.executable, str(ROOT / "crisp.py"), "--socket", node.daemon.socket, "check"]
    [line] = [
        line for line in subprocess.run(check, capture_output=True, text=True).stdout.splitlines() if "  layers " in line
    ]
    assert line.split(None, 2)[2].startswith("EROFS files" if form == "erofs" else "directories: ")


def test_what_a_container_sees(node: Kubelet) -> None:
    container = node.pod().run("/bin/sleep", "1000")
    assert container.sh("cat /data/lower /data/upper /data/linked /data/to /etc/deep/file /etc/deep/second").split() == (
        ["top", "upper", "lower", "upper", "deep", "second"]
    )
    assert container.sh("ls /data /opaque").split() == ["/data:", "linked", "lower", "to", "upper", "/opaque:", "shown"]
    assert container.sh("stat -c %a:%u:%g / /etc/deep /etc/deep/file").split() == ["711:0:0", "750:7:8", "644:7:8"]
    container.sh("echo more >> /data/upper; rm /data/lower; mkdir /opaque/new; mv /etc/deep/file /etc/deep/moved")
    assert container.sh("cat /data/upper; ls /data").split() == ["upper", "more", "linked", "to", "upper"]


def test_users_of_the_image_and_a_root_that_cannot_be_written(node: Kubelet) -> None:
    config = cri.ContainerConfig()
    config.linux.security_context.readonly_rootfs = True
    config.linux.security_context.run_as_username = "worker"
    container = node.pod().run("/bin/sleep", "1000", config=config)
    assert container.sh("id -u; id -G; echo $HOME").split() == ["70", "71", "72", "/data"]
    assert container.exec("/bin/mkdir", "/tmp/x").exit_code != 0


def test_all_share_the_pages(node: Kubelet, form: str) -> None:
    """Two containers that are made at once, and one that comes later: each layer is mounted once, with one page cache."""
    pods = [node.pod(), node.pod(), node.pod()]
    found: list[str] = []

    def run(number: int) -> None:
        found.append(pods[number].run("/bin/sleep", "1000").sh("cat /data/lower"))

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(2)
    assert found == ["top\n"] * 3
    files = [node.daemon.root / "layers" / name for name in layers_of(node.daemon)]
    assert mounted(node.daemon) == sorted(path.stat().st_ino for path in files if form == "erofs")


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_mapped_users(node: Kubelet, handler: str) -> None:
    node.need_handler(handler, user_namespaces=True)
    config = node.pod_config()
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = cri.POD
    options.uids.add(host_id=300000, container_id=0, length=65536)
    options.gids.add(host_id=300000, container_id=0, length=65536)
    mapping = [cri.IDMapping(host_id=300000, container_id=0, length=65536)]
    volume = cri.Mount(
        container_path="/image", image={"image": APP}, readonly=True, uidMappings=mapping, gidMappings=mapping
    )
    container = node.pod(config, handler=handler).run("/bin/sleep", "1000", config=cri.ContainerConfig(mounts=[volume]))
    wanted = ["711:0:0", "750:7:8", "644:0:0", "750:7:8"]
    assert container.sh("stat -c %a:%u:%g / /etc/deep /data/upper /image/etc/deep").split() == wanted
    container.sh("echo more >> /data/upper")
    assert container.sh("stat -c %u /data/upper; cat /image/data/upper").split() == ["0", "upper"]


def test_image_volumes(node: Kubelet, tmp_path: Path) -> None:
    single = bring(node, "example.org/one:v1", [tar([directory("dir/"), Member("dir/file", b"single\n")])], tmp_path / "one")

    def volume(path: str, image: str, sub_path: str = "") -> cri.Mount:
        return cri.Mount(container_path=path, readonly=True, image={"image": image}, image_sub_path=sub_path)

    volumes = [
        *(volume("/whole", APP), volume("/part", APP, "data"), volume("/one", APP, "data/upper")),
        *(volume("/single", single), volume("/again", single, "dir/file")),
    ]
    container = node.pod().run("/bin/sleep", "1000", config=cri.ContainerConfig(mounts=volumes))
    shown = container.sh("cat /whole/data/lower /part/upper /one /single/dir/file /again; ls /whole/opaque")
    assert shown.split() == ["top", "upper", "upper", "single", "single", "shown"]
    for path in ("/whole/x", "/single/x"):
        assert container.exec("/bin/mkdir", path).exit_code != 0


def test_containers_outlive_the_image_and_the_daemon(node: Kubelet, form: str) -> None:
    container = node.pod().run("/bin/sleep", "1000")
    forget(node, APP)
    assert container.sh("cat /data/upper") == "upper\n"
    before = mounted(node.daemon)
    node.daemon.kill()
    node.daemon.start()
    assert container.sh("cat /data/linked") == "lower\n"
    assert mounted(node.daemon) == before
    assert len(before) == (3 if form == "erofs" else 0)
    container.stop()
    container.remove()
    wait_until(lambda: not layers_of(node.daemon))
    assert mounted(node.daemon) == []


@only_files
def test_what_a_killed_daemon_leaves_mounted(node: Kubelet) -> None:
    """It died between the removal of a layer and its unmounting: the next start looks."""
    pod = node.pod()
    container = pod.run("/bin/sleep", "1000")
    container.stop()
    pod.stop()
    pod.remove()
    node.daemon.stop()
    for name in layers_of(node.daemon):
        os.rename(node.daemon.root / "layers" / name, node.daemon.root / f"{name}.away")
    gone = mounted(node.daemon)
    node.daemon.start()
    wait_until(lambda: mounted(node.daemon) == [], pause=0.1)
    assert len(gone) == 3


@only_files
def test_after_a_reboot(node: Kubelet) -> None:
    """/run is empty, and no mount is left."""
    container = node.pod().run("/bin/sleep", "1000")
    container.stop()
    node.daemon.remove_all()
    node.daemon.stop()
    mounts.detach_all(str(node.daemon.state / "layers"))
    node.daemon.start()
    assert node.pod().run("/bin/sleep", "1000").sh("cat /data/upper") == "upper\n"


def test_layers_of_both_kinds_in_one_image(node: Kubelet, form: str, tmp_path: Path) -> None:
    """The setting changes: what is there stays, what is new is made as the setting says, and lies upon it."""
    other = next(name for name in FORMS if name != form)
    config = node.daemon.config.read_text()
    node.daemon.stop()
    node.daemon.config.write_text(config.replace(f'layers = "{form}"', f'layers = "{other}"'))
    try:
        node.daemon.start()
        upper = tar([Member("data/.wh.upper"), Member("data/newest", b"newest\n"), hardlink("data/second", "etc/deep/file")])
        bring(node, "example.org/mixed:v1", [*layered(), upper], tmp_path / "mixed")
        names = layers_of(node.daemon)
        assert sorted(name.endswith(".erofs") for name in names) == sorted([form == "erofs"] * 3 + [other == "erofs"])
        container = node.pod().run("/bin/sleep", "1000", config=cri.ContainerConfig(image={"image": "example.org/mixed:v1"}))
        assert container.sh("ls /data").split() == ["linked", "lower", "newest", "second", "to"]
        assert container.sh("cat /data/lower /data/second; stat -c %u /data/second").split() == ["top", "deep", "7"]
        assert node.pod().run("/bin/sleep", "1000").sh("cat /data/upper") == "upper\n"
    finally:
        if node.daemon.process is not None:
            node.daemon.stop()
        node.daemon.config.write_text(config)
        node.daemon.start()


@only_files
def test_as_many_layers_as_an_image_may_have(node: Kubelet, tmp_path: Path) -> None:
    upper = [tar([Member(f"data/file{number}", b"x")]) for number in range(126)]
    bring(node, "example.org/many:v1", [layered()[0], *upper], tmp_path / "many")
    container = node.pod().run("/bin/sleep", "1000", config=cri.ContainerConfig(image={"image": "example.org/many:v1"}))
    assert container.sh("ls /data | wc -l").strip() == "128"


def test_images_are_made_and_sent_on(node: Kubelet, tmp_path: Path) -> None:
    """Committed, exported, removed, imported, verified."""
    step = node.pod().shell("echo made > /made; rm /data/linked")
    name, archive = "example.org/made:v1", str(tmp_path / "made.tar")
    made = node.client.admin.CommitContainer(admin.CommitContainerRequest(container_id=step.id, reference=name)).image_id
    node.client.admin.ExportImages(admin.ExportImagesRequest(references=[name], path=archive, format="docker"))
    node.daemon.remove_all()
    for image in (name, APP):
        forget(node, image)
    wait_until(lambda: not layers_of(node.daemon))
    assert list(node.client.admin.ImportImages(admin.ImportImagesRequest(path=archive)).image_ids) == [made]
    container = node.pod().run("/bin/sleep", "1000", config=cri.ContainerConfig(image={"image": made}))
    assert container.sh("cat /made; ls /data").split() == ["made", "lower", "to", "upper"]
    report = node.client.admin.VerifyImages(admin.VerifyImagesRequest())
    assert (list(report.bad_layers), list(report.bad_blobs)) == ([], [])
    assert report.checked > 4


def test_what_the_kubelet_is_told_of_the_disk(node: Kubelet, form: str) -> None:
    [told] = node.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
    root = node.daemon.root
    files = [path for name in ("layers", "blobs") for path in (root / name).rglob("*") if form == "erofs" and path.is_file()]
    if form == "erofs":
        assert told.inodes_used.value == len(files)
        taken = sum(path.stat().st_blocks * 512 for path in files)
        assert abs(told.used_bytes.value - taken) <= 4096 * 4 * len(files)
