"""`crisp start stop restart kill rm wait`: what is done to containers that are there. Each takes several, by name or id."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import click

from runtime.cli import completion, run_logs
from runtime.cli.docker_words import unneeded
from runtime.cli.endings import status_of
from runtime.cli.lookup import Node
from runtime.cli.output import clean, errors, fail
from runtime.client import CallError, Client
from runtime.host import followers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from proto import api_pb2 as cri

STOP_SECONDS: Final = 10
"""That a container has to end by itself; as docker's."""

LOOK_SECONDS: Final = 0.1

KUBELETS: Final = "io.kubernetes.pod.uid"
"""The label of a kubelet's containers. It counts their attempts, and would be at odds with one that it has not made."""

AT_ONCE: Final = 16
"""Calls at the same time for several containers."""


@click.command("start")
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@click.pass_obj
def start(socket_path: str, containers: tuple[str, ...]) -> None:
    """Start containers that were created.

    One that has ended does not start again, `crisp restart` makes it anew.
    """
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    def one(client: Client, container: cri.Container) -> None:
        if container.state == cri.CONTAINER_EXITED:
            fail(f"{container.metadata.name} has ended, and a container runs once: `crisp restart` makes it anew")
        client.runtime.StartContainer(cri.StartContainerRequest(container_id=container.id))

    _each(socket_path, containers, one)


_time = click.option(
    "--time",
    "-t",
    "seconds",
    type=click.IntRange(0, 1 << 31),
    default=STOP_SECONDS,
    show_default=True,
    help="Seconds until it is killed.",
)


@click.command("stop")
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@_time
@click.pass_obj
def stop(socket_path: str, containers: tuple[str, ...], seconds: int) -> None:
    """End containers: their stop signal, some time, then SIGKILL. A pod that --rm was said of goes with its last one."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    def one(client: Client, container: cri.Container) -> None:
        client.runtime.StopContainer(cri.StopContainerRequest(container_id=container.id, timeout=seconds))
        node = Node(client)
        pod = node.pods.get(container.pod_sandbox_id)
        if pod is not None and node.is_over(pod) and not followers.is_followed(sandbox_config(client, pod.id).log_directory):
            remove_pod(client, pod)

    _each(socket_path, containers, one)


@click.command("restart")
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@_time
@click.pass_obj
def restart(socket_path: str, containers: tuple[str, ...], seconds: int) -> None:
    """End containers, and make each anew: the same configuration, name, pod and log, another id.

    Of what the old one has written only volumes and the log are left: a container runs once. It goes when the new one runs.
    """
    from proto import api_pb2 as cri  # noqa: PLC0415

    def one(client: Client, container: cri.Container) -> None:
        name, others = container.metadata.name, "somebody else has made it anew"
        if KUBELETS in container.labels:
            fail(f"{name} is a kubelet's, which starts it anew when it has ended: `crisp stop` it")
        client.runtime.StopContainer(cri.StopContainerRequest(container_id=container.id, timeout=seconds))
        config = container_config(client, container.id)
        config.image.image = container.image_id  # a name may be another image's by now
        of_pod = Node(client).of_pod(container.pod_sandbox_id)
        config.metadata.attempt = 1 + max(
            [container.metadata.attempt, *(c.metadata.attempt for c in of_pod if c.metadata.name == name)]
        )
        if config.metadata.attempt != container.metadata.attempt + 1:
            fail(f"{name}: {others}")
        request = cri.CreateContainerRequest(
            pod_sandbox_id=container.pod_sandbox_id,
            config=config,
            sandbox_config=sandbox_config(client, container.pod_sandbox_id),
        )
        made = client.runtime.CreateContainer(request).container_id
        try:
            client.runtime.StartContainer(cri.StartContainerRequest(container_id=made))
        except CallError:
            # The same call of two is one container: it is another's if that has started it.
            status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=made)).status
            if status.state != cri.CONTAINER_CREATED and status.reason != "StartError":
                fail(f"{name}: {others}")
            client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=made))
            raise
        client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container.id))

    _each(socket_path, containers, one)


@click.command("kill")
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@click.option("--signal", "-s", "name", default="KILL", show_default=True, help="Name or number.")
@click.pass_obj
def kill(socket_path: str, containers: tuple[str, ...], name: str) -> None:
    """Send a signal to the containers' first process; SIGKILL ends all of them."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    number = _signal(name)

    def one(client: Client, container: cri.Container) -> None:
        if container.state != cri.CONTAINER_RUNNING:
            fail(f"{container.metadata.name} does not run")
        if number == signal.SIGKILL:
            client.runtime.StopContainer(cri.StopContainerRequest(container_id=container.id, timeout=0))
        else:
            send_signal(client, container.id, number)

    _each(socket_path, containers, one)


@click.command("rm")
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@click.option("--force", "-f", is_flag=True, help="Also what runs; what is not there is no failure.")
@unneeded("-v", "--volumes")
@click.pass_obj
def rm(socket_path: str, containers: tuple[str, ...], force: bool) -> None:
    """Remove containers; a pod that `crisp run` has made goes with its last one."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    def one(client: Client, container: cri.Container) -> None:
        if container.state == cri.CONTAINER_RUNNING and not force:
            fail(f"{container.metadata.name} runs: stop it first, or say --force")
        client.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container.id))
        node = Node(client)
        pod = node.pods.get(container.pod_sandbox_id)
        if pod is not None and not node.of_pod(pod.id) and run_logs.directory(pod.metadata.uid).is_dir():
            remove_pod(client, pod)

    _each(socket_path, containers, one, forgiving=force)


@click.command("wait")
@click.argument("containers", nargs=-1, required=True, shell_complete=completion.containers)
@click.pass_obj
def wait(socket_path: str, containers: tuple[str, ...]) -> None:
    """Wait until containers have ended; prints the exit code of each."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    with errors(), Client(socket_path) as client:
        node = Node(client)
        found = [node.container(word) for word in containers]
        for pod in {container.pod_sandbox_id for container in found}:
            followers.follow(sandbox_config(client, pod).log_directory)
        for container in found:
            ended = (cri.CONTAINER_EXITED, cri.CONTAINER_UNKNOWN)
            while (status := status_of(client, container.id)).state not in ended:
                time.sleep(LOOK_SECONDS)
            click.echo(status.exit_code)


def first_process(client: Client, container: str) -> int:
    """The pid of a container's first process on this node; ends the command if it does not run."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    reply = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True))
    pid = int(json.loads(reply.info["info"])["pid"])
    if reply.status.state != cri.CONTAINER_RUNNING or not pid:
        fail(f"{reply.status.metadata.name} does not run")
    return pid


def container_config(client: Client, container: str) -> cri.ContainerConfig:
    """What a container was made of."""
    from google.protobuf import json_format  # noqa: PLC0415

    from proto import api_pb2 as cri  # noqa: PLC0415

    reply = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True))
    return json_format.ParseDict(json.loads(reply.info["info"])["config"], cri.ContainerConfig())


def sandbox_config(client: Client, pod: str) -> cri.PodSandboxConfig:
    """What a pod was made of."""
    from google.protobuf import json_format  # noqa: PLC0415

    from proto import api_pb2 as cri  # noqa: PLC0415

    reply = client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    return json_format.ParseDict(json.loads(reply.info["info"])["config"], cri.PodSandboxConfig())


def remove_pod(client: Client, pod: cri.PodSandbox) -> None:
    """Stop and remove a pod, and the logs that `crisp run` has made for it."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    run_logs.discard(pod.metadata.uid)


def send_signal(client: Client, container: str, number: int) -> None:
    """Send it to a container's first process; ends the command if it does not run."""
    pid = first_process(client, container)
    descriptor = os.pidfd_open(pid)
    try:
        if first_process(client, container) == pid:  # and not another process's by now
            signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def _signal(name: str) -> int:
    try:
        word = name.upper().removeprefix("SIG")
        if word.startswith("RTMIN+"):
            name = str(signal.SIGRTMIN + int(word.removeprefix("RTMIN+")))
        number = int(name) if name.isdecimal() else signal.Signals["SIG" + word]
        return int(signal.Signals(number)) if number < signal.SIGRTMIN else int(number)
    except (KeyError, ValueError):
        fail(f"--signal {name}: no such signal", 2)


def _each(
    socket_path: str, words: Sequence[str], work: Callable[[Client, cri.Container], None], *, forgiving: bool = False
) -> None:
    """Do it to all of them at once, and print what was named; what fails is said and does not stop the others.

    `forgiving`: of one that is not there it is said alone.
    """

    def done(word: str) -> bool:
        try:
            work(client, node.container(word))
        except SystemExit:
            return False
        except CallError as error:
            click.echo(clean(f"crisp: {word}: {error.message}"), err=True)
            return False
        except OSError as error:  # of a signal: it has ended, or there is no such
            click.echo(f"crisp: {word}: {error.strerror}", err=True)
            return False
        return True

    names, failed = [*dict.fromkeys(words)], False
    with errors(), ExitStack() as stack:
        # In this order Ctrl-C ends the calls that are under way, for which the threads would wait.
        every = stack.enter_context(_at_once()) if len(names) > 1 else map
        client = stack.enter_context(Client(socket_path))
        node = Node(client)
        for word in [word for word in names if forgiving and not node.is_container(word)]:
            click.echo(clean(f"crisp: no such container: {word}"), err=True)
            names.remove(word)
        for word, well in zip(names, every(done, names), strict=True):
            if well:
                click.echo(word)
            failed = failed or not well
    if failed:
        raise SystemExit(1)


@contextmanager
def _at_once() -> Iterator[Callable[[Callable[[str], bool], Sequence[str]], Iterable[bool]]]:
    """As `map`, in threads; the results in their order."""
    from concurrent import futures  # noqa: PLC0415  takes as long to load as a call

    def every(call: Callable[[str], bool], words: Sequence[str]) -> Iterator[bool]:
        for future in [threads.submit(call, word) for word in words]:
            while not futures.wait((future,), LOOK_SECONDS).done:
                pass  # else a signal that comes just before is not seen until the call ends
            yield future.result()

    with futures.ThreadPoolExecutor(AT_ONCE) as threads:
        yield every
