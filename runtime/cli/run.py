"""`crisp run`: a pod from start to logs to removal, through the socket, as a kubelet would."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final

import click
import grpc

from kernel.descriptors import write_all
from runtime.cli import completion, run_options
from runtime.cli.lifecycle import STOP_SECONDS, run_logs
from runtime.cli.lookup import Node
from runtime.cli.output import clean, commands_failure, errors, fail, show, without_dashes
from runtime.cli.signals import Signalled, Signals
from runtime.client import Client

if TYPE_CHECKING:
    from proto import api_pb2 as cri

LOOK_SECONDS: Final = 0.05

FAILED: Final = 125
"""Exit code where crisp has failed, and not the command: as docker's."""

LOG_BYTES: Final = 16 << 20
"""Size of a log from which on another is begun: what was shown is not kept."""


@click.command("run", context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
@click.argument("image", required=False, shell_complete=completion.images)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rootfs", type=click.Path(exists=True, file_okay=False), help="A directory in place of an image.")
@click.option("--name", help="Name of container and pod; made up if absent.")
@click.option("--pod", "inside", help="A pod that is there, to run in.", shell_complete=completion.pods)
@click.option("-d", "--detach", is_flag=True, help="Print the container's id and leave it running.")
@click.option("--rm", "remove", is_flag=True, help="Remove it at its end: so it is, without --detach or --keep.")
@click.option("--keep", is_flag=True, help="Leave the pod there when it has ended.")
@click.option("--pull", "when", type=click.Choice(["always", "missing", "never"]), default="missing", help="The image.")
@click.option("--handler", "--runtime", default="", help="Runtime handler: crun, runc …")
@run_options.options
@click.pass_obj
def command(
    socket_path: str,
    image: str | None,
    command: tuple[str, ...],
    rootfs: str | None,
    name: str | None,
    inside: str | None,
    detach: bool,
    remove: bool,
    keep: bool,
    when: str,
    handler: str,
    options: run_options.Options,
) -> None:
    """Run a container, in a pod of its own, and show its output; ends with the container's exit code.

    \b
    crisp run docker.io/library/busybox echo hello
    crisp run -it --memory 64M docker.io/library/busybox sh
    crisp run --rootfs DIR /bin/sh -c 'echo hello'

    The container and its pod are removed at the end. 125 is a failure of crisp, 126 a command that cannot be run, 127 one
    that is not there.
    """
    if rootfs is not None and image is not None:
        command, image = (image, *command), None
    command = without_dashes(command)
    if rootfs is None and image is None:
        fail("name an image, or a directory with --rootfs", 2)
    if detach and (remove or rootfs is not None):
        fail("--detach leaves nobody who could remove what --rm and --rootfs mean to be removed", 2)
    if options.interactive and detach:
        fail("--interactive and --detach contradict each other: `crisp attach` comes later", 2)
    name = name or f"run-{secrets.token_hex(4)}"
    container = run_options.container(options, name, command)
    uid, keep = secrets.token_hex(8), keep or detach
    with (
        Signals().told() as signals,
        errors(FAILED),
        Client(socket_path) as client,
        _image(client, signals, image, rootfs, when) as image_id,
        _logs(uid, keep or inside is not None) as logs,
    ):
        container.image.image = image_id
        container.image.user_specified_image = image or f"{rootfs}"
        run = _Run(client, signals, container, keep)
        if inside is None:
            run.in_new_pod(run_options.pod(options, name, uid, logs), handler)
        else:
            run.in_pod(inside)
        code = run.detached() if detach else run.to_its_end()
    raise SystemExit(code)


@contextmanager
def _image(client: Client, signals: Signals, image: str | None, rootfs: str | None, when: str) -> Iterator[str]:
    """The id of the image to run: pulled if it is absent, made of the directory and removed afterwards if not."""
    from proto import admin_pb2 as admin  # noqa: PLC0415
    from proto import api_pb2 as cri  # noqa: PLC0415

    if rootfs is not None:
        name = f"localhost/rootfs-{secrets.token_hex(4)}:run"
        request = admin.AddRootfsRequest(name=name, directory=os.path.realpath(rootfs))
        try:
            with signals.held():  # a call that is given up may still make it, after its removal
                made = client.admin.AddRootfs(request).image_id
            yield made
        finally:
            client.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))
        return
    assert image is not None
    present = client.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=image)))
    if present.HasField("image") and when != "always":
        yield present.image.id
    elif when == "never":
        fail(f"no such image: {image}", FAILED)
    else:
        yield show(client.admin.PullImage(admin.PullImageRequest(reference=image)))[0]


@contextmanager
def _logs(uid: str, keep: bool) -> Iterator[str]:
    """The directory for the logs of a new pod; one that stays has them where `crisp rm` looks for them."""
    if keep:
        yield str(run_logs(uid))
        return
    directory = tempfile.mkdtemp(prefix="crisp-run-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Run:
    """One container from its creation to its end, and the pod that was made for it."""

    def __init__(self, client: Client, signals: Signals, container: cri.ContainerConfig, keep: bool) -> None:
        self._client = client
        self._runtime = client.runtime
        self._signals = signals
        self._container = container
        self._keep = keep
        self._id = ""
        self._pod = ""
        """The one that was made; empty for a container in another's."""
        self._logs = ""
        """The directory that was made for that pod's logs."""

    def in_new_pod(self, sandbox: cri.PodSandboxConfig, handler: str) -> None:
        """Make the pod and the container."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        with self._or_nothing():
            self._logs = sandbox.log_directory
            os.makedirs(self._logs, mode=0o700, exist_ok=True)
            with self._signals.held():
                request = cri.RunPodSandboxRequest(config=sandbox, runtime_handler=handler)
                self._pod = self._runtime.RunPodSandbox(request).pod_sandbox_id
            self._create(self._pod, sandbox)

    def in_pod(self, word: str) -> None:
        """Make the container in a pod that is there."""
        from google.protobuf import json_format  # noqa: PLC0415

        from proto import api_pb2 as cri  # noqa: PLC0415

        pod = Node(self._client).pod(word).id
        reply = self._runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
        sandbox = json_format.ParseDict(json.loads(reply.info["info"])["config"], cri.PodSandboxConfig())
        shared = sandbox.linux.security_context.namespace_options
        options = self._container.linux.security_context.namespace_options
        options.network, options.ipc = shared.network, shared.ipc
        with self._or_nothing(), self._signals.held():
            self._create(pod, sandbox)

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """What cannot be done to its end leaves nothing, not even what would have been kept."""
        try:
            yield
        except BaseException:
            self._keep = False
            self.end()
            raise

    def _create(self, pod: str, sandbox: cri.PodSandboxConfig) -> None:
        from proto import api_pb2 as cri  # noqa: PLC0415

        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=self._container, sandbox_config=sandbox)
        with commands_failure():
            self._id = self._runtime.CreateContainer(request).container_id

    def _start(self) -> None:
        from proto import api_pb2 as cri  # noqa: PLC0415

        with commands_failure():
            self._runtime.StartContainer(cri.StartContainerRequest(container_id=self._id))

    def detached(self) -> int:
        """Start it, and say which it is."""
        with self._or_nothing():
            self._start()
        click.echo(self._id)
        return 0

    def to_its_end(self) -> int:
        """Show what it writes until it has ended; its exit code. A signal ends it."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        try:
            if self._container.stdin or self._container.tty:
                return self._attached()
            self._start()
            return _follow(self._client, self._id)
        except Signalled:
            self._signals.ignore()
            self._runtime.StopContainer(cri.StopContainerRequest(container_id=self._id, timeout=STOP_SECONDS))
            raise
        finally:
            self.end()

    def _attached(self) -> int:
        """With our own streams as its: it is attached to before it starts, so that nothing is lost."""
        from proto import api_pb2 as cri  # noqa: PLC0415
        from runtime.cli.streams import join  # noqa: PLC0415

        join(self._client, self._id, stdin=self._container.stdin, tty=self._container.tty, begin=self._start)
        request = cri.ContainerStatusRequest(container_id=self._id)
        while (status := self._runtime.ContainerStatus(request).status).state == cri.CONTAINER_RUNNING:
            time.sleep(LOOK_SECONDS)
        return int(status.exit_code)

    def end(self) -> None:
        """Remove what is not to be kept."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        self._signals.ignore()
        if self._keep:
            return
        if self._pod:
            self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self._pod))
            self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self._pod))
        elif self._id:
            self._runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self._id))
        if self._logs:
            shutil.rmtree(self._logs, ignore_errors=True)


def _follow(client: Client, container_id: str) -> int:
    """Copy the log to our own output until the container has ended."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    request = cri.ContainerStatusRequest(container_id=container_id)
    status = client.runtime.ContainerStatus(request).status
    log, pending = open(status.log_path, "rb"), b""  # noqa: SIM115  closed in its turn
    try:
        while True:
            ended = status.state in (cri.CONTAINER_EXITED, cri.CONTAINER_UNKNOWN)
            pending = _copy(log, pending)
            if ended:
                break
            if log.tell() > LOG_BYTES and _begin_log(client, container_id, status.log_path):
                pending = _copy(log, pending)  # nobody writes to it any more
                log.close()
                log = open(status.log_path, "rb")  # noqa: SIM115
            time.sleep(LOOK_SECONDS)
            status = client.runtime.ContainerStatus(request).status
    finally:
        log.close()
    if status.reason not in ("Completed", "Error") or status.message:
        click.echo(clean(f"crisp: {status.reason} {status.message}".rstrip()), err=True)
    return int(status.exit_code)


def _begin_log(client: Client, container_id: str, path: str) -> bool:
    """Let the container write another log, which takes the name; False if it has ended."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    with suppress(FileNotFoundError):
        os.unlink(path)
    try:
        client.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container_id))
    except grpc.RpcError:
        return False
    return True


def _copy(log: BinaryIO, pending: bytes) -> bytes:
    """Copy whole log lines (`time stream tag text`); what remains of the last one."""
    while chunk := log.read(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            _, stream, tag, text = line.split(b" ", 3)
            # Past `sys.stdout`, which there is none of if it was closed from the beginning.
            write_all(1 if stream == b"stdout" else 2, text if tag == b"P" else text + b"\n")
    return pending
