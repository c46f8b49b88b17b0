"""ImageService over the socket, with a real registry: pulls, containers and volumes of images, images of containers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.host import free_port
from tests.harness.kubelet import Kubelet
from tests.images.image_builder import Layout, Member, busybox, directory, tar
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    running = Registry(tmp_path_factory.mktemp("registry"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def app(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with an entrypoint, a user, variables and two layers; its reference."""
    layout = Layout(tmp_path_factory.mktemp("layout"))
    data = tar([directory("data/"), Member("data/file", b"from the second layer\n")])
    config = {
        "Entrypoint": ["/bin/echo", "entry"],
        "Cmd": ["cmd"],
        "Env": ["COLOUR=blue"],
        "WorkingDir": "/data",
        "User": "1000:1000",
        "StopSignal": "SIGINT",
    }
    layout.image("v1", [busybox(), data], config)
    reference = f"{registry.host}/team/app:v1"
    layout.push("v1", reference)
    return reference


def pull(kubelet: Kubelet, reference: str, **auth: str) -> str:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=reference))
    if auth:
        request.auth.MergeFrom(cri.AuthConfig(**auth))
    return str(kubelet.images.PullImage(request).image_ref)


def status(kubelet: Kubelet, reference: str, *, verbose: bool = False) -> cri.ImageStatusResponse:
    return kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=reference), verbose=verbose))


def remove(kubelet: Kubelet, reference: str) -> None:
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)))


def test_life_of_an_image(kubelet: Kubelet, app: str) -> None:
    image_id = pull(kubelet, app)
    image = status(kubelet, app).image
    assert image.id == image_id
    assert list(image.repo_tags) == [app]
    [digest] = image.repo_digests
    assert digest.startswith(app.rpartition(":")[0] + "@sha256:")
    assert image.size > 0
    assert (image.uid.value, image.username) == (1000, "")
    for name in (image_id, image_id.removeprefix("sha256:"), image_id[:19], digest):
        assert status(kubelet, name).image.id == image_id
    assert pull(kubelet, digest) == image_id
    listed = kubelet.images.ListImages(cri.ListImagesRequest()).images
    assert image_id in {i.id for i in listed}
    only = kubelet.images.ListImages(cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=app)))).images
    assert [i.id for i in only] == [image_id]
    assert '"imageSpec"' in status(kubelet, app, verbose=True).info["info"]
    remove(kubelet, app)
    assert not status(kubelet, app).HasField("image")
    remove(kubelet, app)


def test_image_fs_info(kubelet: Kubelet, app: str) -> None:
    def used() -> int:
        [info] = kubelet.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
        assert Path(info.fs_id.mountpoint).is_dir()
        assert info.timestamp > 0
        return int(info.used_bytes.value)

    before = used()
    pull(kubelet, app)
    assert used() > before
    remove(kubelet, app)


def test_container_runs_as_its_image_says(kubelet: Kubelet, app: str) -> None:
    image = cri.ImageSpec(image=pull(kubelet, app), user_specified_image=app)
    pod = kubelet.pod()
    container = pod.run(config=cri.ContainerConfig(image=image))
    assert container.wait().exit_code == 0
    assert container.output() == "entry cmd\n"
    shown = container.status()
    [digest] = status(kubelet, app).image.repo_digests
    assert (shown.image.image, shown.image_ref, shown.image_id) == (app, digest, image.image)
    by_digest = cri.ImageSpec(image=image.image, user_specified_image=digest)
    named = pod.create(config=cri.ContainerConfig(image=by_digest)).status()
    assert (named.image.image, named.image.user_specified_image, named.image_ref) == (app, digest, digest)
    [listed] = kubelet.runtime.ListContainers(cri.ListContainersRequest(filter={"id": named.id})).containers
    assert (listed.image_ref, listed.image_id) == (image.image, image.image), "the kubelet compares these with its images"
    assert shown.stop_signal == cri.SIGNAL_SIGINT
    assert (shown.user.linux.uid, shown.user.linux.gid) == (1000, 1000)
    other = pod.run("/bin/sh", "-c", "pwd; echo $COLOUR; cat file", config=cri.ContainerConfig(image=image))
    other.wait()
    assert other.output() == "/data\nblue\nfrom the second layer\n"


def test_image_in_use_outlives_its_removal(kubelet: Kubelet, app: str) -> None:
    container = kubelet.pod().run("/bin/sleep", "100", config=cri.ContainerConfig(image={"image": pull(kubelet, app)}))
    remove(kubelet, app)
    assert container.sh("cat /data/file") == "from the second layer\n"
    kubelet.daemon.kill()
    kubelet.daemon.start()
    assert container.sh("cat /data/file") == "from the second layer\n"


def test_image_volume(kubelet: Kubelet, app: str) -> None:
    image_id = pull(kubelet, app)

    def mount(path: str, sub_path: str = "") -> cri.Mount:
        return cri.Mount(container_path=path, readonly=True, image={"image": image_id}, image_sub_path=sub_path)

    mounts = [mount("/whole"), mount("/part", "data"), mount("/one", "/data/file")]
    container = kubelet.pod().run("/bin/sleep", "100", config=cri.ContainerConfig(mounts=mounts))
    text = "from the second layer\n"
    assert container.sh("cat /whole/data/file /part/file /one") == text * 3
    assert container.exec("/bin/touch", "/whole/x").exit_code != 0
    assert container.sh("/whole/bin/echo runs").strip() == "runs"
    assert [m.image.image_ref for m in container.status().mounts] == [image_id] * 3
    for bad, message in (
        (mount("/x", "no/such/path"), "^ImageVolumeMountFailed"),
        (mount("/x", "../../../etc/shadow"), "^ImageVolumeMountFailed"),
        (cri.Mount(container_path="/x", image={"image": image_id}), "must be mounted readonly"),
        (cri.Mount(container_path="/x", readonly=True, image={"image": "no/such:image"}), "not on this node"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            kubelet.pod().create("/bin/true", config=cri.ContainerConfig(mounts=[bad]))
        assert message.strip("^") in caught.value.details()
        assert caught.value.details().startswith("ImageVolumeMountFailed")


def test_artifact_as_volume(kubelet: Kubelet, registry: Registry, tmp_path: Path) -> None:
    layout, title = Layout(tmp_path / "layout"), "org.opencontainers.image.title"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x-model",
        "config": layout.blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [layout.blob(b"heavy", "application/x-model", annotations={title: "weights.bin"})],
    }
    layout.add("model", layout.blob(json.dumps(manifest).encode(), manifest["mediaType"]))
    reference = f"{registry.host}/team/model:v1"
    layout.push("model", reference)
    model = pull(kubelet, reference)
    mount = cri.Mount(container_path="/model", readonly=True, image={"image": model})
    container = kubelet.pod().run("/bin/sleep", "100", config=cri.ContainerConfig(mounts=[mount]))
    assert container.sh("cat /model/weights.bin") == "heavy"
    remove(kubelet, reference)


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("team/UPPER", grpc.StatusCode.INVALID_ARGUMENT, "team/UPPER"),
        ("a b", grpc.StatusCode.INVALID_ARGUMENT, "a b"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "without an image"),
        ("{registry}/team/none:v1", grpc.StatusCode.NOT_FOUND, "team/none"),
        ("{registry}/team/app:none", grpc.StatusCode.NOT_FOUND, "none"),
        ("{registry}/team/app@sha256:" + "0" * 64, grpc.StatusCode.NOT_FOUND, "sha256:000"),
        ("127.0.0.1:{closed}/x/y:v1", grpc.StatusCode.UNKNOWN, "RegistryUnavailable: "),
    ],
)
def test_failed_pulls(kubelet: Kubelet, registry: Registry, reference: str, code: grpc.StatusCode, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pull(kubelet, reference.format(registry=registry.host, closed=free_port()))
    assert caught.value.code() is code
    assert message in caught.value.details()


def test_mirror_from_hosts_toml(kubelet: Kubelet, registry: Registry, app: str) -> None:
    """The image is reported under the name that was asked for, not the mirror's."""
    remove(kubelet, app)
    host = kubelet.daemon.certs / "registry.example"
    host.mkdir()
    (host / "hosts.toml").write_text(f'[host."http://{registry.host}"]\ncapabilities = ["pull", "resolve"]\n')
    image_id = pull(kubelet, "registry.example/team/app:v1")
    assert list(status(kubelet, image_id).image.repo_tags) == ["registry.example/team/app:v1"]
    remove(kubelet, image_id)


def crisp(daemon: Daemon, *arguments: str, stdin: bytes = b"") -> str:
    command = [sys.executable, str(ROOT / "crisp.py"), "--socket", daemon.socket, *arguments]
    result = subprocess.run(command, capture_output=True, timeout=60, input=stdin)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().strip()


def test_an_image_is_built_by_running_containers(kubelet: Kubelet, registry: Registry, rootfs: Path) -> None:
    """From a plain directory in three steps, pushed, removed, pulled back, run. No other tool."""
    daemon, repository = kubelet.daemon, f"{registry.host}/built/app"
    base = crisp(daemon, "image", "add-rootfs", "localhost/base:1", str(rootfs))
    pod = kubelet.pod()
    for number, script in enumerate(
        (
            "echo one > /one; mkdir /dir; echo keep > /dir/a; echo drop > /dir/b",
            "rm /dir/b; echo two > /two",
            "rm /etc/group",
        ),
        1,
    ):
        step = pod.shell(script, cri.ContainerConfig(image={"image": base}))
        base = crisp(daemon, "image", "commit", step.id, f"{repository}:{number}", "--cmd", '["/bin/cat", "/one", "/two"]')
    crisp(daemon, "image", "push", f"{repository}:3")
    for number in (1, 2, 3):
        remove(kubelet, f"{repository}:{number}")
    pulled = pull(kubelet, f"{repository}:3")
    container = pod.run(config=cri.ContainerConfig(image={"image": pulled}))
    container.wait()
    assert container.output() == "one\ntwo\n"
    look = pod.shell("ls /dir /etc", cri.ContainerConfig(image={"image": pulled}))
    assert look.output().split() == ["/dir:", "a", "/etc:", "hostname", "hosts", "passwd", "resolv.conf"]


def test_export_and_import(kubelet: Kubelet, app: str, tmp_path: Path) -> None:
    image_id = pull(kubelet, app)
    for form in ("oci", "docker"):
        archive = str(tmp_path / f"{form}.tar")
        crisp(kubelet.daemon, "image", "export", archive, app, "--format", form)
        remove(kubelet, app)
        assert crisp(kubelet.daemon, "image", "import", archive) == image_id
        assert app in crisp(kubelet.daemon, "image", "ls")
    assert " 0 bad" in crisp(kubelet.daemon, "image", "verify")


def test_import_from_a_pipe_and_a_second_name(kubelet: Kubelet, app: str, tmp_path: Path) -> None:
    daemon, image_id = kubelet.daemon, pull(kubelet, app)
    crisp(daemon, "image", "export", str(tmp_path / "app.tar"), app)
    remove(kubelet, app)
    assert crisp(daemon, "image", "import", "-", stdin=(tmp_path / "app.tar").read_bytes()) == image_id
    assert crisp(daemon, "image", "tag", app, "registry.example/second:v2") == image_id
    assert sorted(status(kubelet, image_id).image.repo_tags) == sorted([app, "registry.example/second:v2"])
    remove(kubelet, "registry.example/second:v2")
    remove(kubelet, app)


def test_crisp_run_and_ps(kubelet: Kubelet, app: str, rootfs: Path) -> None:
    assert crisp(kubelet.daemon, "run", app) == "entry cmd"
    assert crisp(kubelet.daemon, "run", "--rootfs", str(rootfs), "--env", "A=b", "--", "/bin/sh", "-c", "echo $A") == "b"
    assert len(crisp(kubelet.daemon, "ps", "--all").splitlines()) == 1
