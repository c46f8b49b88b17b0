"""`crisp run`: a pod from start to logs to removal, through the socket, as a kubelet would."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from kernel.descriptors import write_all
from proto.errors import Code, CrispError
from runtime.cli import completion, run_logs, run_options, run_ports
from runtime.cli.endings import status_of
from runtime.cli.exit_codes import FAILED, PassesOn
from runtime.cli.lifecycle import STOP_SECONDS, sandbox_config, send_signal
from runtime.cli.lookup import Node
from runtime.cli.output import clean, commands_failure, errors, fail, need_terminal, show
from runtime.cli.ps import looks
from runtime.cli.signals import Signalled, Signals
from runtime.client import CallError, Client, is_away, patiently
from runtime.host import followers
from runtime.streaming.detach_keys import DEFAULT, parse

if TYPE_CHECKING:
    from proto import api_pb2 as cri

LOOK_SECONDS: Final = 0.05

PASSED_SECONDS: Final = 3.0
"""After which a container is stopped that has not ended by a signal that was passed on to it."""

END_SECONDS: Final = 30.0
"""That the daemon may be away when all is to be removed."""

LOG_BYTES: Final = 16 << 20
"""Size of a log from which on another is begun: what was shown is not kept."""


@click.command("run", cls=PassesOn, context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
@click.argument("image", required=False, shell_complete=completion.images)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--rootfs", type=click.Path(exists=True, file_okay=False), help="A directory in place of an image.")
@click.option("--name", help="Name of container and pod; made up if absent.")
@click.option("--pod", "inside", help="A pod that is there, to run in.", shell_complete=completion.pods)
@click.option("-d", "--detach", is_flag=True, help="Print the container's id and leave it running.")
@click.option("--rm", "remove", is_flag=True, help="Remove it when it has ended: so it is, without --detach or --keep.")
@click.option("--keep", is_flag=True, help="Leave the pod there when it has ended.")
@click.option("--pull", "when", type=click.Choice(["always", "missing", "never"]), default="missing", help="The image.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of a pull.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Of the image; it has to be this node's.")
@click.option("--cidfile", type=click.Path(dir_okay=False), help="A new file that gets the container's id.")
@click.option("--handler", "--runtime", default="", help="Runtime handler: crun, runc …")
@click.option("--detach-keys", default=DEFAULT, show_default=True, metavar="KEYS", help="Leave with them what -it runs.")
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
    quiet: bool,
    platform: str,
    cidfile: str | None,
    handler: str,
    detach_keys: str,
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
    if rootfs is None and image is None:
        fail("name an image, or a directory with --rootfs", 2)
    if remove and keep:
        fail("--rm and --keep contradict each other", 2)
    if not options.sig_proxy:
        fail("signals are passed on, always: --detach and `crisp logs -f` leave it alone", 2)
    if inside is not None:
        run_options.refuse_for_pod(options)
    _refuse_elsewhere(platform)
    need_terminal(stdin=options.interactive and not detach, tty=options.tty)
    name = name or f"run-{secrets.token_hex(4)}"
    container = run_options.container(options, name, command)
    container.stdin_once = container.stdin_once and not detach
    uid, keep = secrets.token_hex(8), keep or (detach and not remove)
    pod = run_options.pod(options, name, uid, str(run_logs.directory(uid)))
    with Signals().told() as signals, errors(FAILED), Client(socket_path) as client:
        keys = parse(detach_keys) if options.tty else b""
        run_logs.sweep(client, socket_path)
        _refuse_taken(Node(client, FAILED), name, inside)
        run = _Run(client, signals, container, uid, keep=keep, keys=keys)
        with run.or_nothing(), _new_file(cidfile) as tell:
            if rootfs is not None or inside is None:
                run.make_logs(socket_path)
            run.take_image(image, rootfs, when, quiet=quiet)
            if inside is None:
                if options.userns == "auto":
                    run_options.give_users(pod, _first_users(client))
                if options.publish_all:
                    pod.port_mappings.extend(run.exposed(pod.port_mappings, options.expose))
                run.in_new_pod(pod, handler)
            else:
                run.in_pod(inside)
            tell(run.id)
        code = run.detached() if detach else run.to_its_end()
    raise SystemExit(code)


def _refuse_elsewhere(platform: str) -> None:
    """End the command for an image of another platform than this node's."""
    if not platform:
        return
    from imagesvc.platforms import host_platform, parse_platform  # noqa: PLC0415  few ask

    with errors(FAILED):
        wanted, ours = parse_platform(platform), host_platform()
        if (wanted.os, wanted.architecture) != (ours.os, ours.architecture):
            fail(f"--platform {platform}: this node is {ours}, and runs nothing else", 2)


@contextmanager
def _new_file(path: str | None) -> Iterator[Callable[[str], object]]:
    """A function that writes into a file that was not there; it goes again if nothing was written."""
    if path is None:
        yield lambda _text: None
        return
    try:
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115  closed below
    except FileExistsError:
        fail(f"--cidfile {path}: it is there already, and may be another container's", 2)
    with file:
        try:
            yield file.write
        except BaseException:
            os.unlink(path)
            raise


def _refuse_taken(node: Node, name: str, inside: str | None) -> None:
    """End the command if there is one of this name, as docker does, though the CRI would have several.

    Before an image is pulled; whoever takes the name meanwhile, the daemon knows.
    """
    if inside is not None:
        taken = any(container.metadata.name == name for container in node.of_pod(node.pod(inside).id))
    else:
        named = [pod for pod in node.pods.values() if (pod.metadata.namespace, pod.metadata.name) == ("default", name)]
        taken = any(not node.is_over(pod) for pod in named)
    if taken:
        fail(f"the name {name} is taken: `crisp rm {name}`, or another --name", FAILED)


def _first_users(client: Client) -> Iterator[int]:
    """Where the users of pods with user namespaces begin."""
    for pod in Node(client).pods:
        options = looks(client, (pod,))[pod].status.linux.namespaces.options
        yield from (line.host_id for line in options.userns_options.uids)


class _Run:
    """One container from its creation to its end, and what was made for it."""

    def __init__(
        self, client: Client, signals: Signals, container: cri.ContainerConfig, uid: str, *, keep: bool, keys: bytes
    ) -> None:
        self._client = client
        self._runtime = client.runtime
        self._signals = signals
        self._container = container
        self._uid = uid
        self._keep = keep
        self._keys = keys
        self.id = ""
        self._pod = ""
        """The one that was made; empty for a container in another's."""
        self._has_logs = False
        self._has_rootfs = False
        self._written: dict[int, int] | None = None
        """What each of our descriptors got of a container that was attached to."""
        self._passed_at: float | None = None

    def make_logs(self, socket_path: str) -> None:
        """By which also what a run has left that was killed is found."""
        self._has_logs = True
        run_logs.make(self._uid, socket_path)

    def take_image(self, image: str | None, rootfs: str | None, when: str, *, quiet: bool) -> None:
        """The image to run: pulled if it is absent, made of the directory if there is one."""
        from proto import admin_pb2 as admin  # noqa: PLC0415
        from proto import api_pb2 as cri  # noqa: PLC0415

        self._container.image.user_specified_image = image or f"{rootfs}"
        if rootfs is not None:
            request = admin.AddRootfsRequest(name=run_logs.rootfs_image(self._uid), directory=os.path.realpath(rootfs))
            self._has_rootfs = True
            with self._signals.held():  # a call that is given up may still make it, after its removal
                self._container.image.image = self._client.admin.AddRootfs(request).image_id
            return
        assert image is not None
        present = self._client.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=image)))
        if present.HasField("image") and when != "always":
            self._container.image.image = present.image.id
        elif when == "never":
            fail(f"no such image: {image}", FAILED)
        else:
            self._container.image.image = show(
                self._client.admin.PullImage(admin.PullImageRequest(reference=image)), quiet=quiet
            )[0]

    def exposed(self, named: Iterable[cri.PortMapping], more: Iterable[str]) -> list[cri.PortMapping]:
        """Free ports of this node for those that the image exposes, and `more`."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        image = cri.ImageSpec(image=self._container.image.image)
        reply = self._client.images.ImageStatus(cri.ImageStatusRequest(image=image, verbose=True))
        return [*run_ports.exposed(json.loads(reply.info["info"])["imageSpec"], named, more)]

    def in_new_pod(self, sandbox: cri.PodSandboxConfig, handler: str) -> None:
        """Make the pod and the container."""
        from proto import api_pb2 as cri  # noqa: PLC0415
        from runtime.oci import asked  # noqa: PLC0415

        sandbox.annotations[asked.MADE_BY] = self._uid
        if not self._keep:
            sandbox.annotations[asked.REMOVE_AT_END] = "true"  # in case that we are killed, or left by the detach keys
        with self._signals.held():
            request = cri.RunPodSandboxRequest(config=sandbox, runtime_handler=handler)
            self._pod = self._runtime.RunPodSandbox(request).pod_sandbox_id
        self._create(self._pod, sandbox)

    def in_pod(self, word: str) -> None:
        """Make the container in a pod that is there."""
        from runtime.oci import asked  # noqa: PLC0415

        pod = Node(self._client, FAILED).pod(word).id
        self._container.annotations[asked.MADE_BY] = self._uid
        if not self._keep:
            self._container.annotations[asked.REMOVE_AT_END] = "true"
        sandbox = sandbox_config(self._client, pod)
        followers.follow(sandbox.log_directory)
        with self._signals.held():
            self._create(pod, sandbox)

    @contextmanager
    def or_nothing(self) -> Iterator[None]:
        """What cannot be done to its end leaves nothing, not even what would have been kept."""
        try:
            yield
        except BaseException:
            self._keep = False
            self.end()
            raise

    def _create(self, pod: str, sandbox: cri.PodSandboxConfig) -> None:
        from proto import api_pb2 as cri  # noqa: PLC0415

        shared, ours = sandbox.linux.security_context.namespace_options, self._container.linux.security_context
        ours.namespace_options.network, ours.namespace_options.ipc = shared.network, shared.ipc
        if shared.HasField("userns_options"):
            ours.namespace_options.userns_options.CopyFrom(shared.userns_options)
            for mount in self._container.mounts:  # as the kubelet does: root in there is root for its volumes
                mount.uidMappings.extend(shared.userns_options.uids)
                mount.gidMappings.extend(shared.userns_options.gids)
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=self._container, sandbox_config=sandbox)
        with commands_failure():
            self.id = self._runtime.CreateContainer(request).container_id

    def _start(self) -> None:
        from proto import api_pb2 as cri  # noqa: PLC0415

        with commands_failure():
            self._runtime.StartContainer(cri.StartContainerRequest(container_id=self.id))

    def detached(self) -> int:
        """Start it, and say which it is."""
        with self.or_nothing():
            self._start()
        click.echo(self.id)
        return 0

    def to_its_end(self) -> int:
        """Show what it writes until it has ended; its exit code. A signal is passed on, and ends it."""
        try:
            if self._container.stdin or self._container.tty:
                with suppress(Signalled):
                    return self._attached()
                return self._followed()
            with self._signals.noted():
                self._start()
            return self._followed()
        finally:
            self.end()

    def _followed(self) -> int:
        """By the log, where a terminal that may be gone is not written to."""
        with self._signals.noted():
            if not self._container.tty:
                return _follow(self._client, self.id, self._written, self._pass_on)
            while (status := status_of(self._client, self.id)).state not in _ended():
                self._pass_on(status)
                time.sleep(LOOK_SECONDS)
            return int(status.exit_code)

    def _pass_on(self, status: cri.ContainerStatus) -> None:
        """A signal that has come; the container is stopped if it goes on all the same."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        number = self._signals.first
        if not number:
            return
        if self._passed_at is None and status.state == cri.CONTAINER_RUNNING:
            self._passed_at = time.monotonic()
            with suppress(CallError, OSError, SystemExit):  # it has ended, or the daemon is away
                send_signal(self._client, self.id, number)
            return
        name = cri.Signal.Name(status.stop_signal).removeprefix("SIGNAL_")
        asked = signal.Signals(number).name == ("SIGTERM" if name == "RUNTIME_DEFAULT" else name)
        if self._passed_at is not None and time.monotonic() < self._passed_at + (STOP_SECONDS if asked else PASSED_SECONDS):
            return
        request = cri.StopContainerRequest(container_id=self.id, timeout=0 if asked else STOP_SECONDS)
        self._surely(lambda: self._runtime.StopContainer(request))

    def _attached(self) -> int:
        """With our own streams as its: it is attached to before it starts, so that nothing is lost."""
        from proto import api_pb2 as cri  # noqa: PLC0415
        from runtime.cli.streams import Joint  # noqa: PLC0415  --help needs no streams
        from runtime.streaming.client import DetachedError  # noqa: PLC0415

        joint = Joint(self._client, self.id, stdin=self._container.stdin, tty=self._container.tty, keys=self._keys)
        self._written = joint.written
        begin = self._start
        while True:
            try:
                with self._signals.noted():
                    joint.join(begin, self._signals.tell)
            except DetachedError:
                self._keep = True
                return 0
            except CrispError as error:
                lost = is_away(error) if isinstance(error, CallError) else error.code is Code.UNAVAILABLE
                if not lost or (state := status_of(self._client, self.id).state) == cri.CONTAINER_CREATED:
                    raise
                if not self._container.tty:
                    # Its input has ended with the daemon's connection, and the log has the output that is missing.
                    return self._followed()
                click.echo("crisp: the daemon was away, and what was written meanwhile is not shown", err=True)
                begin = _begun
                if state == cri.CONTAINER_RUNNING:
                    continue
            break
        while (status := status_of(self._client, self.id)).state == cri.CONTAINER_RUNNING:
            time.sleep(LOOK_SECONDS)
        return int(status.exit_code)

    def end(self) -> None:
        """Remove what is not to be kept."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        self._signals.ignore()
        if self._keep:
            return
        if self._pod:
            self._surely(lambda: self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self._pod)))
            self._surely(lambda: self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self._pod)))
        elif self.id:
            self._surely(lambda: self._runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self.id)))
        if self._has_rootfs:
            image = cri.ImageSpec(image=run_logs.rootfs_image(self._uid))
            self._client.images.RemoveImage(cri.RemoveImageRequest(image=image))
        if self._has_logs:
            run_logs.discard(self._uid)

    def _surely(self, call: Callable[[], object]) -> None:
        """Also by a daemon that is being started anew. One that stays away removes what has ended when it is back."""
        patiently(call, END_SECONDS)


def _begun() -> None:
    """It runs already."""


def _ended() -> tuple[cri.ContainerState, ...]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    return (cri.CONTAINER_EXITED, cri.CONTAINER_UNKNOWN)


def _follow(
    client: Client, container_id: str, shown: dict[int, int] | None, look: Callable[[cri.ContainerStatus], None]
) -> int:
    """Copy the log to our own output until the container has ended; its exit code.

    `shown` are bytes that were written there already; `look` is called now and then.
    """
    status = status_of(client, container_id)
    if not status.log_path:  # it is gone already, and its log with it
        return int(status.exit_code)
    log, pending = open(status.log_path, "rb"), b""  # noqa: SIM115  closed in its turn
    skipped = dict(shown or {})
    try:
        while True:
            ended = status.state in _ended()
            pending = _copy(log, pending, skipped)
            if ended:
                break
            look(status)
            if log.tell() > LOG_BYTES and _begin_log(client, container_id, status.log_path):
                pending = _copy(log, pending, skipped)  # nobody writes to it any more
                log.close()
                log = open(status.log_path, "rb")  # noqa: SIM115
            time.sleep(LOOK_SECONDS)
            status = status_of(client, container_id)
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
    except CallError:
        return False
    return True


def _copy(log: BinaryIO, pending: bytes, skipped: dict[int, int]) -> bytes:
    """Copy whole log lines (`time stream tag text`); what remains of the last one. `skipped`: bytes to leave out yet."""
    while chunk := log.read(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            _, stream, tag, text = line.split(b" ", 3)
            output = 1 if stream == b"stdout" else 2
            text = text if tag == b"P" else text + b"\n"
            if skipping := min(skipped.get(output, 0), len(text)):
                skipped[output] -= skipping
                text = text[skipping:]
            # Past `sys.stdout`, which there is none of if it was closed from the beginning.
            write_all(output, text)
    return pending
