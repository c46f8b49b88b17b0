"""Random sequences of calls and of the daemon's deaths, beside a small model of what the CRI says they do.

The model knows ids, states and exit codes, and nothing of how crisp works. After every step all lists and statuses must be
what the model says; at the end everything is removed, and nothing may be left over.
"""

from __future__ import annotations

import enum
import itertools
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet, Pod, some_limit
from tests.harness.shims import shim_pid
from tests.harness.waiting import wait_until

MAX_PODS = 3
MAX_CONTAINERS = 4  # of one pod
PICK = st.integers(0, 1 << 16)

SCRIPT = """
trap 'echo asked; exit 7' TERM
echo begin
while [ ! -e /control/{name} ]; do sleep 0.02; done
exit $(cat /control/{name})
"""


class State(enum.Enum):
    """Of a container, as the CRI has them."""

    CREATED = cri.CONTAINER_CREATED
    RUNNING = cri.CONTAINER_RUNNING
    EXITED = cri.CONTAINER_EXITED


@dataclass
class KnownContainer:
    """A container as it must be."""

    made: Container
    config: cri.ContainerConfig
    created_at: int
    state: State = State.CREATED
    exit_code: int = 0
    started: bool = False
    limit: dict[str, Any] = field(default_factory=dict)

    def ended(self, code: int) -> None:
        if self.state is not State.EXITED:
            self.state, self.exit_code = State.EXITED, code


@dataclass
class KnownPod:
    """A sandbox as it must be."""

    made: Pod
    ready: bool = True
    ip: str = ""
    containers: dict[str, KnownContainer] = field(default_factory=dict)


def code_of(call: Any, *arguments: Any, **more: Any) -> grpc.StatusCode:
    """How a call ends."""
    try:
        call(*arguments, **more)
    except grpc.RpcError as error:
        assert "bug" not in error.details(), error.details()
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


class Machine(RuleBasedStateMachine):
    """`kubelet` is set by who runs it: one daemon for all runs."""

    kubelet: Kubelet
    numbers = itertools.count()
    failures: ClassVar[list[str]] = []
    """What went wrong: a failure that does not come again, Hypothesis reports without saying what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.pods: dict[str, KnownPod] = {}
        self.gone: list[str] = ["f" * 64]
        self.control = self.kubelet.daemon.directory / "control"

    # --- pods ----------------------------------------------------------------------------------------------------

    @initialize()
    def first_pod(self) -> None:
        self.control.mkdir(exist_ok=True)
        self.run_pod()

    @rule()
    @precondition(lambda self: len(self.pods) < MAX_PODS)
    def run_pod(self) -> None:
        pod = self.kubelet.pod()
        status = pod.status()
        assert status.network.ip
        assert status.network.ip not in {known.ip for known in self.pods.values() if known.ready}
        assert pod.id not in self.pods
        self.pods[pod.id] = KnownPod(pod, ip=status.network.ip)

    @rule(pick=PICK)
    @precondition(lambda self: self.pods)
    def run_pod_again(self, pick: int) -> None:
        """A retry gets the same sandbox; one that is stopped is in the way."""
        known = self.pod(pick)
        request = cri.RunPodSandboxRequest(config=known.made.config)
        if known.ready:
            assert self.kubelet.runtime.RunPodSandbox(request).pod_sandbox_id == known.made.id
        else:
            assert code_of(self.kubelet.runtime.RunPodSandbox, request) is grpc.StatusCode.ALREADY_EXISTS

    @rule(pick=PICK)
    @precondition(lambda self: self.pods)
    def stop_pod(self, pick: int) -> None:
        known = self.pod(pick)
        known.made.stop()
        known.ready = False
        for container in known.containers.values():
            container.ended(137)

    @rule(pick=PICK)
    @precondition(lambda self: self.pods)
    def remove_pod(self, pick: int) -> None:
        known = self.pod(pick)
        known.made.remove()
        del self.pods[known.made.id]
        self.gone += [known.made.id, *known.containers]

    # --- containers ----------------------------------------------------------------------------------------------

    @rule(pick=PICK)
    @precondition(lambda self: self.pods)
    def create(self, pick: int) -> None:
        known = self.pod(pick)
        if len(known.containers) >= MAX_CONTAINERS:
            return
        name = f"c{next(self.numbers)}"
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name, attempt=pick % 3), labels={"name": name})
        config.mounts.add(container_path="/control", host_path=str(self.control))
        config.command.extend(["/bin/sh", "-c", SCRIPT.format(name=name)])
        if not known.ready:
            assert code_of(known.made.create, config=config) is grpc.StatusCode.FAILED_PRECONDITION
            return
        made = known.made.create(config=config)
        assert made.id not in known.containers
        known.containers[made.id] = KnownContainer(made, config, made.status().created_at)

    @rule(pick=PICK, changed=st.booleans())
    @precondition(lambda self: self.containers())
    def create_again(self, pick: int, changed: bool) -> None:
        """A retry gets the same container; another configuration under its name is refused."""
        known = self.container(pick)
        config = cri.ContainerConfig()
        config.CopyFrom(known.config)
        if changed:
            config.labels["changed"] = "yes"
            code = code_of(known.made.pod.create, config=config)
            assert code is grpc.StatusCode.ALREADY_EXISTS
        else:
            assert known.made.pod.create(config=config).id == known.made.id

    @rule(pick=PICK)
    @precondition(lambda self: self.containers())
    def start(self, pick: int) -> None:
        known = self.container(pick)
        if known.state is not State.CREATED:
            assert code_of(known.made.start) is grpc.StatusCode.FAILED_PRECONDITION
            return
        known.made.start()
        known.state, known.started = State.RUNNING, True
        wait_until(lambda: "begin" in known.made.output())

    @rule(pick=PICK, code=st.sampled_from([0, 1, 42, 255]))
    @precondition(lambda self: self.containers(State.RUNNING))
    def let_it_exit(self, pick: int, code: int) -> None:
        known = self.container(pick, State.RUNNING)
        self.let_go(known, code)
        known.made.wait()
        known.ended(code)

    @rule(pick=PICK, grace=st.sampled_from([0, 20]))
    @precondition(lambda self: self.containers())
    def stop(self, pick: int, grace: int) -> None:
        known = self.container(pick)
        known.made.stop(grace)
        known.ended(7 if grace and known.state is State.RUNNING else 137)

    @rule(pick=PICK)
    @precondition(lambda self: self.containers())
    def remove(self, pick: int) -> None:
        known = self.container(pick)
        known.made.remove()
        del self.pods[known.made.pod.id].containers[known.made.id]
        self.gone.append(known.made.id)

    @rule(pick=PICK)
    @precondition(lambda self: self.containers())
    def exec(self, pick: int) -> None:
        known = self.container(pick)
        if known.state is State.RUNNING:
            reply = known.made.exec("/bin/sh", "-c", "echo out; echo err >&2; exit 5", timeout=60)
            assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out\n", b"err\n", 5)
        else:
            assert code_of(known.made.exec, "/bin/true") is grpc.StatusCode.FAILED_PRECONDITION

    @rule(pick=PICK, shares=st.sampled_from([2, 512, 4096]))
    @precondition(lambda self: self.containers())
    def update(self, pick: int, shares: int) -> None:
        known = self.container(pick)
        if known.state is State.EXITED:
            assert code_of(known.made.update, **some_limit(shares)) is grpc.StatusCode.FAILED_PRECONDITION
            return
        known.limit = some_limit(shares)
        known.made.update(**known.limit)

    @rule(pick=PICK)
    @precondition(lambda self: self.containers())
    def reopen_log(self, pick: int) -> None:
        known = self.container(pick)
        request = cri.ReopenContainerLogRequest(container_id=known.made.id)
        wanted = grpc.StatusCode.OK if known.state is State.RUNNING else grpc.StatusCode.FAILED_PRECONDITION
        assert code_of(self.kubelet.runtime.ReopenContainerLog, request) is wanted

    def let_go(self, known: KnownContainer, code: int) -> None:
        """Tell the container's process to exit; it reads the file as soon as it sees it."""
        file = self.control / known.config.metadata.name
        new = file.with_suffix(".new")
        new.write_text(str(code))
        new.rename(file)

    # --- faults --------------------------------------------------------------------------------------------------

    @rule(how=st.sampled_from(["stop", "kill", "lose the database"]))
    def restart(self, how: str) -> None:
        daemon = self.kubelet.daemon
        if how == "stop":
            daemon.stop()
        else:
            daemon.kill()
        if how == "lose the database":
            (daemon.root / "state.db").unlink()
        daemon.start()

    @rule(pick=PICK, code=st.sampled_from([0, 9]))
    @precondition(lambda self: self.containers(State.RUNNING))
    def exit_without_a_daemon(self, pick: int, code: int) -> None:
        known = self.container(pick, State.RUNNING)
        self.kubelet.daemon.kill()
        self.let_go(known, code)
        wait_until((self.kubelet.daemon.state / "containers" / known.made.id / "exit.json").exists)
        self.kubelet.daemon.start()
        known.ended(code)

    @rule(pick=PICK, alive=st.booleans())
    @precondition(lambda self: self.containers(State.RUNNING, State.CREATED))
    def kill_shim(self, pick: int, alive: bool) -> None:
        known = self.container(pick, State.RUNNING, State.CREATED)
        if not alive:
            self.kubelet.daemon.kill()
        os.kill(shim_pid(self.kubelet.daemon, known.made.id), signal.SIGKILL)
        if not alive:
            self.kubelet.daemon.start()
        wait_until(lambda: known.made.status().state == cri.CONTAINER_EXITED)
        known.ended(255)

    @rule(pick=PICK)
    def ask_for_what_is_gone(self, pick: int) -> None:
        runtime, identity = self.kubelet.runtime, self.gone[pick % len(self.gone)]
        missing = grpc.StatusCode.NOT_FOUND
        assert code_of(runtime.ContainerStatus, cri.ContainerStatusRequest(container_id=identity)) is missing
        assert code_of(runtime.PodSandboxStatus, cri.PodSandboxStatusRequest(pod_sandbox_id=identity)) is missing
        runtime.StopContainer(cri.StopContainerRequest(container_id=identity, timeout=1))
        runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=identity))
        runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=identity))
        runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=identity))

    # --- what must hold ------------------------------------------------------------------------------------------

    def pod(self, pick: int) -> KnownPod:
        pods = list(self.pods.values())
        return pods[pick % len(pods)]

    def containers(self, *states: State) -> list[KnownContainer]:
        known = (c for pod in self.pods.values() for c in pod.containers.values())
        return [c for c in known if not states or c.state in states]

    def container(self, pick: int, *states: State) -> KnownContainer:
        found = self.containers(*states)
        return found[pick % len(found)]

    @invariant()
    def lists_are_right(self) -> None:
        runtime = self.kubelet.runtime
        pods = {p.id: p.state == cri.SANDBOX_READY for p in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
        assert pods == {key: known.ready for key, known in self.pods.items()}
        listed = runtime.ListContainers(cri.ListContainersRequest()).containers
        assert {c.id: c.state for c in listed} == {c.made.id: c.state.value for c in self.containers()}
        for state in State:
            wanted = cri.ContainerFilter(state=cri.ContainerStateValue(state=state.value))
            found = runtime.ListContainers(cri.ListContainersRequest(filter=wanted)).containers
            assert {c.id for c in found} == {c.made.id for c in self.containers(state)}

    @invariant()
    def statuses_are_right(self) -> None:
        for pod in self.pods.values():
            status = pod.made.status()
            assert (status.state == cri.SANDBOX_READY) is pod.ready
            assert status.metadata == pod.made.config.metadata
            assert status.network.ip == (pod.ip if pod.ready else "")
        for known in self.containers():
            status = known.made.status()
            assert (status.state, status.exit_code) == (known.state.value, known.exit_code)
            assert (status.metadata, status.labels) == (known.config.metadata, known.config.labels)
            assert status.created_at == known.created_at
            assert bool(status.started_at) is known.started
            assert bool(status.finished_at) is (known.state is State.EXITED)
            if status.finished_at:
                assert status.created_at < status.finished_at
                assert status.started_at < status.finished_at
            for name, value in known.limit.items():
                assert getattr(status.resources.linux, name) == value, name
            if known.started:
                assert known.made.output() in ("begin\n", "begin\nasked\n")

    def teardown(self) -> None:
        """Also after a failure, for the next run has the same daemon."""
        if (error := sys.exc_info()[1]) is not None and not type(error).__module__.startswith("hypothesis"):
            self.failures.append("".join(traceback.format_exception(error)) + self.kubelet.daemon.tail())
        daemon = self.kubelet.daemon
        if daemon.process is None:
            daemon.start()
        daemon.remove_all()
        assert daemon.leftovers() == []
