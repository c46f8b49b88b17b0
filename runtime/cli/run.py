"""`crisp run`: a pod from start to logs to removal, through the socket, as a kubelet would."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final

import click
import grpc

from kernel.descriptors import write_all
from runtime.cli import completion
from runtime.cli.output import errors, fail, show, without_dashes
from runtime.client import Client

if TYPE_CHECKING:
    from proto import api_pb2 as cri

LOOK_SECONDS: Final = 0.05

STOP_SECONDS: Final = 10
"""That a container has to end by itself after a signal; as docker's."""

LOG_BYTES: Final = 16 << 20
"""Size of a log from which on another is begun: what was shown is not kept."""

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MASKED: Final = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.argument("image", required=False, shell_complete=completion.images)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rootfs", type=click.Path(exists=True, file_okay=False), help="A directory in place of an image.")
@click.option("--name", help="Name of the pod; made up if absent.")
@click.option("--env", "-e", "environment", multiple=True, metavar="NAME=VALUE", help="Variable; repeatable.")
@click.option("--host-network", is_flag=True, help="Use the node's network.")
@click.option("--memory", type=int, default=0, metavar="BYTES", help="Memory limit.")
@click.option("--handler", default="", help="Runtime handler: crun, runc …")
@click.option("--keep", is_flag=True, help="Leave the pod there when it has ended.")
@click.pass_obj
def command(
    socket_path: str,
    image: str | None,
    command: tuple[str, ...],
    rootfs: str | None,
    name: str | None,
    environment: tuple[str, ...],
    host_network: bool,
    memory: int,
    handler: str,
    keep: bool,
) -> None:
    """Run one container in a pod of its own and show its output; ends with the container's exit code.

    \b
    crisp run docker.io/library/busybox -- echo hello
    crisp run --rootfs DIR -- /bin/sh -c 'echo hello'
    """
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    if rootfs is not None and image is not None:
        command, image = (image, *command), None
    command = without_dashes(command)
    if rootfs is None and image is None:
        fail("name an image, or a directory with --rootfs", 2)
    name = name or f"run-{secrets.token_hex(4)}"
    container = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        command=command,
        log_path="0.log",
        envs=_variables(environment),
    )
    context = container.linux.security_context
    context.masked_paths.extend(MASKED)
    context.readonly_paths.extend(READONLY)
    context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    container.linux.resources.memory_limit_in_bytes = memory
    if host_network:
        context.namespace_options.network = cri.NODE
    context.namespace_options.pid = cri.CONTAINER
    with (
        _Signals().told() as signals,
        errors(),
        Client(socket_path) as client,
        _image(client, image, rootfs) as image_id,
        _logs(keep) as logs,
    ):
        container.image.image = image_id
        container.image.user_specified_image = image or f"{rootfs}"
        sandbox = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=secrets.token_hex(8), namespace="default"),
            hostname="" if host_network else name[:63],
            log_directory=logs,
        )
        sandbox.linux.security_context.namespace_options.CopyFrom(context.namespace_options)
        code = _pod(client, signals, sandbox, container, handler, keep)
    raise SystemExit(code)


def _variables(pairs: tuple[str, ...]) -> Iterator[cri.KeyValue]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            fail(f"--env {pair}: not of the form NAME=VALUE", 2)
        yield cri.KeyValue(key=name, value=value.encode())


class _Signalled(BaseException):
    """Somebody wants the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """Signals that end programs end the pod as well, whatever is being done: nothing of it may stay behind."""

    def __init__(self) -> None:
        self._held = False
        self._first = 0

    def _tell(self, number: int, _frame: object) -> None:
        if not self._held:
            raise _Signalled(number)
        self._first = self._first or number

    @contextmanager
    def told(self) -> Iterator[_Signals]:
        """Raise _Signalled where one comes; the command then ends as one does that a signal has killed."""
        before = {number: signal.signal(number, self._tell) for number in ENDING}
        try:
            yield self
        except _Signalled as signalled:
            raise SystemExit(128 + signalled.number) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Tell of them at the end: meanwhile something is made that has to be known first."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._first:
            raise _Signalled(self._first)

    def ignore(self) -> None:
        """The pod is being removed already, and that takes as long as it takes."""
        self._held = True


@contextmanager
def _image(client: Client, image: str | None, rootfs: str | None) -> Iterator[str]:
    """The id of the image to run: pulled if it is absent, made of the directory and removed afterwards if not."""
    from proto import admin_pb2 as admin  # noqa: PLC0415
    from proto import api_pb2 as cri  # noqa: PLC0415

    if rootfs is not None:
        name = f"localhost/rootfs-{secrets.token_hex(4)}:run"
        made = client.admin.AddRootfs(admin.AddRootfsRequest(name=name, directory=os.path.realpath(rootfs))).image_id
        try:
            yield made
        finally:
            client.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))
        return
    assert image is not None
    present = client.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=image)))
    if present.HasField("image"):
        yield present.image.id
    else:
        yield show(client.admin.PullImage(admin.PullImageRequest(reference=image)))[0]


@contextmanager
def _logs(keep: bool) -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="crisp-run-")
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _pod(
    client: Client,
    signals: _Signals,
    sandbox: cri.PodSandboxConfig,
    container: cri.ContainerConfig,
    handler: str,
    keep: bool,
) -> int:
    """Run the pod to its end; the container's exit code."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    runtime = client.runtime
    sandbox_id = ""
    try:
        with signals.held():
            request = cri.RunPodSandboxRequest(config=sandbox, runtime_handler=handler)
            sandbox_id = runtime.RunPodSandbox(request).pod_sandbox_id
        container_id = runtime.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=container, sandbox_config=sandbox)
        ).container_id
        runtime.StartContainer(cri.StartContainerRequest(container_id=container_id))
        try:
            return _follow(client, container_id)
        except _Signalled:
            signals.ignore()
            runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=STOP_SECONDS))
            raise
    finally:
        signals.ignore()
        if sandbox_id and not keep:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))


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
        click.echo(f"crisp: {status.reason} {status.message}".rstrip(), err=True)
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
