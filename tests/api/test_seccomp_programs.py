"""Filters that are built once: what the kernel has is the same, whoever has built it and whichever way it came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proto import api_pb2 as cri
from proto import oci_annotations
from tests.harness import seccomp_filters
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Container, Kubelet, Pod
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

SLEEP = ("/bin/sleep", "1000")
RULES = [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
    {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
]


def localhost(path: Path, **fields: Any) -> cri.ContainerConfig:
    """A container with a profile that no other test has, so that its first container is the first."""
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": RULES, **fields}))
    wanted = cri.ContainerConfig()
    wanted.linux.security_context.seccomp.profile_type = cri.SecurityProfile.Localhost
    wanted.linux.security_context.seccomp.localhost_ref = str(path)
    return wanted


def runtime_default() -> cri.ContainerConfig:
    wanted = cri.ContainerConfig()
    wanted.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    return wanted


def info(container: Container) -> dict[str, Any]:
    request = cri.ContainerStatusRequest(container_id=container.id, verbose=True)
    found: dict[str, Any] = json.loads(container.runtime.ContainerStatus(request).info["info"])
    return found


def given(container: Container) -> bool:
    """Whether the OCI runtime was given the filter."""
    text = (container.pod.kubelet.daemon.state / "containers" / container.id / "config.json").read_text()
    return oci_annotations.FILTER in json.loads(text)["annotations"]


def filters(container: Container) -> list[bytes]:
    return seccomp_filters.of(info(container)["pid"])


def with_ready_filter(pod: Pod, wanted: cri.ContainerConfig) -> Container:
    """Containers with the same profile, until one is given its filter."""
    made: list[Container] = []

    def again() -> bool:
        for container in made:
            container.remove()
        made[:] = [pod.run(*SLEEP, config=wanted)]
        return given(made[0])

    wait_until(again)
    return made[0]


def test_the_kernel_has_the_filter_that_the_runtime_builds(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.need_handler("crun")
    pod = kubelet.pod(handler="crun")
    for wanted in (localhost(tmp_path / "profile.json"), runtime_default()):
        wanted.linux.security_context.no_new_privs = wanted.linux.security_context.seccomp.localhost_ref == ""
        built = pod.run(*SLEEP, config=wanted)
        ready = with_ready_filter(pod, wanted)
        assert len(filters(built)) == 1
        assert filters(ready) == filters(built)
        assert info(ready)["runtimeSpec"]["linux"]["seccomp"] == info(built)["runtimeSpec"]["linux"]["seccomp"]
        assert oci_annotations.FILTER not in info(ready)["runtimeSpec"]["annotations"]
        assert "Seccomp:\t2" in ready.sh("grep Seccomp: /proc/self/status")


def test_a_ready_filter_refuses_what_the_profile_refuses(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.need_handler("crun")
    pod, wanted = kubelet.pod(handler="crun"), localhost(tmp_path / "profile.json")
    pod.run(*SLEEP, config=wanted)
    ready = with_ready_filter(pod, wanted)
    assert b"No space left" in ready.exec("/bin/mkdir", "/d").stderr, "of what is executed in it"
    own = pod.shell("mkdir /d", wanted)
    assert given(own)
    assert "No space left" in own.output("stderr"), "of its own process"
    # Another profile under the same name is another profile, at once.
    assert pod.shell("mkdir /d", localhost(tmp_path / "profile.json", syscalls=RULES[1:])).output("stderr") == ""


@pytest.mark.parametrize(
    ("handler", "fields"), [("runc", {}), ("crun", {"flags": ["SECCOMP_FILTER_FLAG_LOG"]})], ids=["runc", "flags"]
)
def test_others_build_their_filter_each_time(kubelet: Kubelet, tmp_path: Path, handler: str, fields: dict[str, Any]) -> None:
    kubelet.need_handler(handler)
    pod, wanted = kubelet.pod(handler=handler), localhost(tmp_path / "profile.json", **fields)
    containers = [pod.run(*SLEEP, config=wanted) for _ in range(4)]
    assert not any(map(given, containers))
    assert len(filters(containers[-1])) == 1


SCRIPT = """#!/bin/sh
# A runtime around crun: it changes the rules of containers that have an annotation.
bundle=
for argument; do
    [ "$last" != --bundle ] || bundle=$argument
    case $argument in create|start|delete) echo $argument >> "$0.verbs";; esac
    last=$argument
done
if [ -n "$bundle" ] && grep -q org.example.relaxed "$bundle/config.json"; then
    sed -i 's/"errnoRet": *28/"errnoRet": 0/g' "$bundle/config.json"
fi
exec crun "$@"
"""


@pytest.fixture
def scripted(tmp_path: Path, rootfs: Path) -> Iterator[tuple[Kubelet, Path]]:
    """A daemon one of whose handlers is a script; the file with what it is asked for."""
    program = tmp_path / "script"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    daemon = Daemon(f'[runtimes.script]\npath = "{program}"\ncontainer_annotations = ["org.example.*"]\n')
    daemon.start()
    kubelet = Kubelet.on(daemon, rootfs)
    yield kubelet, Path(f"{program}.verbs")
    daemon.remove_all()
    assert daemon.leftovers() == []
    daemon.destroy()


def test_a_script_around_crun_is_asked_each_time(scripted: tuple[Kubelet, Path], tmp_path: Path) -> None:
    """It says that it is crun. What it makes of one container's rules, or has to do at its end, is its own."""
    kubelet, verbs = scripted
    kubelet.need_handler("crun")
    pod, wanted = kubelet.pod(handler="script"), localhost(tmp_path / "profile.json")
    relaxed = localhost(tmp_path / "profile.json")
    relaxed.annotations["org.example.relaxed"] = "yes"
    pod.run(*SLEEP, config=relaxed).sh("mkdir /d || true")
    for _ in range(4):
        container = pod.run(*SLEEP, config=wanted)
        assert b"No space left" in container.exec("/bin/mkdir", "/d").stderr
        assert not given(container)
        container.remove()
    assert verbs.read_text().split().count("delete") >= 4
