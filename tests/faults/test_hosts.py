"""Hosts that lack something, and two daemons on one host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def lone_daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.destroy()


def path_with(directory: Path, *programs: str) -> str:
    """A PATH on which only these are found."""
    directory.mkdir()
    for name in programs:
        program = shutil.which(name)
        assert program
        (directory / name).symlink_to(program)
    return str(directory)


def test_without_oci_runtime_it_is_not_ready_and_says_so(lone_daemon: Daemon, tmp_path: Path) -> None:
    lone_daemon.start(PATH=path_with(tmp_path / "bin", "nft"))
    assert lone_daemon.client is not None
    status = lone_daemon.client.runtime.Status(cri.StatusRequest()).status
    ready = next(c for c in status.conditions if c.type == "RuntimeReady")
    assert not ready.status
    assert ready.reason == "NoOCIRuntime"
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="a", uid="b", namespace="c"))
    with pytest.raises(grpc.RpcError, match="no runtime handler"):
        lone_daemon.client.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config))


def test_oci_runtime_that_fails_is_named(lone_daemon: Daemon, tmp_path: Path) -> None:
    path = path_with(tmp_path / "bin", "nft", "runc")
    broken = Path(path) / "crun"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    lone_daemon.start(PATH=path)
    assert lone_daemon.client is not None
    reply = lone_daemon.client.runtime.Status(cri.StatusRequest(verbose=True))
    assert {h.name for h in reply.runtime_handlers} == {"", "runc"}
    assert '"crun": "exit code 3"' in reply.info["config"]
    assert next(c for c in reply.status.conditions if c.type == "RuntimeReady").status


def test_a_handler_that_was_too_slow_at_the_start_is_tried_again(lone_daemon: Daemon, tmp_path: Path) -> None:
    """Until then Status says so, and pods that name no handler run."""
    path = path_with(tmp_path / "bin", "nft", "runc")
    slow, hindered = Path(path) / "other", tmp_path / "hindered"
    slow.write_text(f'#!/bin/sh\n[ ! -e {hindered} ] || exit 9\nexec runc "$@"\n')
    slow.chmod(0o755)
    hindered.touch()
    lone_daemon.config.write_text(lone_daemon.config.read_text() + "[runtimes.other]\n")
    lone_daemon.start(PATH=path)
    assert lone_daemon.client is not None
    runtime = lone_daemon.client.runtime

    def handlers() -> tuple[set[str], str]:
        reply = runtime.Status(cri.StatusRequest())
        ready = next(c for c in reply.status.conditions if c.type == "RuntimeReady")
        assert ready.status
        return {handler.name for handler in reply.runtime_handlers}, ready.message

    names, message = handlers()
    assert names == {"", "runc"}
    assert "'other': 'exit code 9'" in message
    hindered.unlink()
    wait_until(lambda: handlers() == ({"", "runc", "other"}, ""))


def test_a_node_whose_only_handler_comes_late(lone_daemon: Daemon, tmp_path: Path) -> None:
    path = path_with(tmp_path / "bin", "nft")
    late = Path(path) / "runc"
    late.write_text("#!/bin/sh\nexit 9\n")
    late.chmod(0o755)
    lone_daemon.start(PATH=path)
    late.unlink()
    late.symlink_to(shutil.which("runc") or "")
    assert lone_daemon.client is not None
    runtime = lone_daemon.client.runtime
    wait_until(lambda: {h.name for h in runtime.Status(cri.StatusRequest()).runtime_handlers} == {"", "runc"})


def test_flushed_rules_are_mended_without_anybody_asking(kubelet: Kubelet) -> None:
    """`nft flush ruleset`: no call follows, as on a node where nothing happens for hours."""
    pod = kubelet.pod()

    def rules() -> str:
        """Those of this daemon: others of the same run may have left theirs."""
        return subprocess.run(["nft", "list", "table", "inet", "crisp"], capture_output=True, text=True).stdout

    before = rules()
    assert pod.status().network.ip.rpartition(".")[0] in before
    for _ in range(2):
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        wait_until(lambda: rules() == before)
    assert "somebody removed the pod network's nftables rules" in kubelet.daemon.log_path.read_text()


def test_two_daemons_side_by_side(rootfs: Path) -> None:
    """Each with directories, a bridge and a table of its own: neither notices the other, nor its end."""
    second_network = '[network]\nbridge = "side0"\ntable = "side0"\nsubnets = ["10.219.0.0/16", "fd63:7269:7390::/64"]\n'
    daemons = [Daemon(), Daemon(second_network)]
    try:
        kubelets = []
        for daemon in daemons:
            daemon.start()
            kubelets.append(Kubelet.on(daemon, rootfs))
        containers = [kubelet.pod().run("/bin/sleep", "100") for kubelet in kubelets]
        prefixes = [container.pod.status().network.ip.rpartition(".")[0] for container in containers]
        assert prefixes == ["10.201.0", "10.219.0"]
        daemons[0].remove_all()
        daemons[0].stop()
        assert containers[1].sh("echo alive") == "alive\n"
        daemons[0].start()
        assert containers[1].status().state == cri.CONTAINER_RUNNING
    finally:
        for daemon in daemons:
            daemon.destroy()


def test_second_daemon_on_the_same_directories_is_refused(lone_daemon: Daemon) -> None:
    lone_daemon.start()
    result = crisp("serve", "--root", str(lone_daemon.root), "--state", str(lone_daemon.state))
    assert result.returncode == 1
    assert f"another crisp uses {lone_daemon.state}" in result.stderr
    assert lone_daemon.client is not None
    assert lone_daemon.client.runtime.Version(cri.VersionRequest()).runtime_name == "crisp"


def crisp(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "crisp.py"), *arguments], capture_output=True, text=True, timeout=60)


def test_bad_configuration(tmp_path: Path) -> None:
    config = tmp_path / "crisp.toml"
    config.write_text("[log]\n\ncolour = true\n")
    result = crisp("serve", "--config", str(config))
    assert result.returncode == 1
    assert f"{config}:3: log.colour: unknown key" in result.stderr


def test_commands_without_a_daemon(tmp_path: Path) -> None:
    for command, code in ((["ps"], 1), (["image", "ls"], 1), (["run", "x"], 125)):
        result = crisp("--socket", str(tmp_path / "none.sock"), *command)
        assert result.returncode == code
        assert "no daemon at" in result.stderr
    assert crisp("--help").returncode == 0


@pytest.mark.controllers("cpu", "cpuset", "memory", "pids")
def test_check() -> None:
    result = crisp("check")
    assert result.returncode == 0, result.stdout
    lines = dict(line.split(maxsplit=1)[::-1] for line in result.stdout.splitlines())
    assert len(lines) >= 11
    bare = subprocess.run(
        [sys.executable, str(ROOT / "crisp.py"), "check"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/nonexistent"},
    )
    assert bare.returncode == 1
    assert "apt-get install crun" in bare.stdout
