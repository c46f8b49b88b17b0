"""Pods and containers as NRI plugins see them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from runtime.nri.messages import container_message, linux_resources, pod_message
from runtime.paths import Paths
from runtime.records import ContainerRecord, SandboxRecord

PATHS = Paths(Path("/var/lib/crisp"), Path("/run/crisp"))

CONFIG = {
    "metadata": {"name": "web"},
    "image": {"image": "sha256:i", "user_specified_image": "web:1"},
    "labels": {"l": "1"},
    "annotations": {"a": "client's", "b": "2"},
    "CDI_devices": [{"name": "v/c=d"}],
    "linux": {
        "security_context": {
            "run_as_user": {"value": 7},
            "run_as_group": {"value": 8},
            "supplemental_groups": [9],
            "seccomp": {"profile_type": "Localhost", "localhost_ref": "p.json"},
        }
    },
}

SPEC: dict[str, Any] = {
    "process": {
        "args": ["/app", "x"],
        "env": ["A=1", "RAW=\udcff"],
        "oomScoreAdj": -3,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        "user": {"additionalGids": [44]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "scheduler": {"policy": "SCHED_RR", "priority": 4, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
    },
    "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "options": ["rbind"]}],
    "annotations": {"a": "spec's", "c": "3"},
    "hooks": {"poststop": [{"path": "/h", "args": ["x"], "env": ["E=1"], "timeout": 2}], "createRuntime": [{"path": "/r"}]},
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "network", "path": "/n"}],
        "cgroupsPath": "/pod/c0",
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o660, "uid": 5, "gid": 0}],
        "sysctl": {"net.a": "1"},
        "netDevices": {"eth9": {"name": "net1"}},
        "intelRdt": {"closID": "low", "schemata": ["L3:0=f"]},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {
                    "names": ["read"],
                    "action": "SCMP_ACT_ALLOW",
                    "errnoRet": 1,
                    "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
        "resources": {
            "memory": {"limit": 64, "swap": 64, "reservation": 5, "swappiness": 6, "disableOOMKiller": True},
            "cpu": {"shares": 2, "quota": -1, "period": 100, "cpus": "0", "mems": "1", "realtimeRuntime": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"},
            ],
            "unified": {"memory.high": "9"},
            "pids": {"limit": 11},
        },
    },
}


def record(**changes: Any) -> ContainerRecord:
    facts: dict[str, Any] = {
        "id": "c0",
        "sandbox_id": "p0",
        "config": json_format.ParseDict(CONFIG, cri.ContainerConfig()),
        "image_id": "sha256:config",
        "log_path": "/log",
        "created_at": 10,
        "image_name": "docker.io/library/web:1",
        "image_ref": "docker.io/library/web@sha256:index",
    }
    return ContainerRecord(**(facts | changes))


def plain(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def value(number: Any) -> dict[str, Any]:
    return {"value": number}


def test_a_container_that_is_being_created() -> None:
    assert plain(container_message(record(), SPEC)) == {
        "id": "c0",
        "pod_sandbox_id": "p0",
        "name": "web",
        "labels": {"l": "1"},
        "annotations": {"a": "client's", "b": "2", "c": "3"},
        "args": ["/app", "x"],
        "env": ["A=1", "RAW=\ufffd"],
        "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "options": ["rbind"]}],
        "hooks": {
            "poststop": [{"path": "/h", "args": ["x"], "env": ["E=1"], "timeout": value("2")}],
            "create_runtime": [{"path": "/r"}],
        },
        "rlimits": [{"type": "RLIMIT_CORE", "soft": "1", "hard": "2"}],
        "created_at": "10",
        "CDI_devices": [{"name": "v/c=d"}],
        "user": {"uid": 7, "gid": 8, "additional_gids": [9, 44]},
        "image": {"name": "docker.io/library/web:1", "digest": "sha256:index", "config_digest": "sha256:config"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/n"}],
            "devices": [
                {
                    "path": "/dev/x",
                    "type": "c",
                    "major": "1",
                    "minor": "3",
                    "file_mode": value(0o660),
                    "uid": value(5),
                    "gid": {},
                }
            ],
            "resources": {
                "memory": {
                    "limit": value("64"),
                    "swap": value("64"),
                    "reservation": value("5"),
                    "swappiness": value("6"),
                    "disable_oom_killer": value(True),
                },
                "cpu": {
                    "shares": value("2"),
                    "quota": value("-1"),
                    "period": value("100"),
                    "cpus": "0",
                    "mems": "1",
                    "realtime_runtime": value("7"),
                },
                "hugepage_limits": [{"page_size": "2MB", "limit": "4"}],
                "devices": [
                    {"access": "rwm"},
                    {"allow": True, "type": "c", "major": value("1"), "minor": value("3"), "access": "r"},
                ],
                "unified": {"memory.high": "9"},
                "pids": {"limit": "11"},
            },
            "oom_score_adj": value("-3"),
            "cgroups_path": "/pod/c0",
            "io_priority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
            "seccomp_profile": {"profile_type": "LOCALHOST", "localhost_ref": "p.json"},
            "seccomp_policy": {
                "default_action": "SCMP_ACT_ERRNO",
                "default_errno": value(38),
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_ALLOW",
                        "errno_ret": value(1),
                        "args": [{"index": 1, "value": "2", "value_two": "3", "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
            "sysctl": {"net.a": "1"},
            "net_devices": {"eth9": {"name": "net1"}},
            "scheduler": {"policy": "SCHED_RR", "priority": 4, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            "rdt": {"clos_id": value("low"), "schemata": {"value": ["L3:0=f"]}, "enable_monitoring": {}},
        },
    }


def test_every_field_of_a_container_is_filled() -> None:
    """But for what has not happened yet: a field that the protocol gets one day is to be thought of."""
    ended = record(made_at=11, pid=4, started_at=12, finished_at=13, exit_code=1, reason="Error", message="m", uid=1)
    running = record(made_at=11, pid=4, started_at=12)
    filled = {field.name for view in (ended, running) for field, _ in container_message(view, SPEC).ListFields()}
    assert filled == {field.name for field in nri.Container.DESCRIPTOR.fields}
    linux = {field.name for field, _ in container_message(running, SPEC).linux.ListFields()}
    assert linux == {field.name for field in nri.LinuxContainer.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    ("facts", "state", "pid"),
    [
        ({}, "CONTAINER_UNKNOWN", 0),
        ({"made_at": 11, "pid": 4}, "CONTAINER_CREATED", 4),
        ({"made_at": 11, "pid": 4, "started_at": 12}, "CONTAINER_RUNNING", 4),
        ({"made_at": 11, "pid": 4, "started_at": 12, "finished_at": 13, "exit_code": 3}, "CONTAINER_STOPPED", 0),
        ({"made_at": 11, "pid": 4, "started_at": 12, "lost_at": 13}, "CONTAINER_UNKNOWN", 4),
    ],
)
def test_states(facts: dict[str, Any], state: str, pid: int) -> None:
    message = container_message(record(**facts), {})
    assert (nri.ContainerState.Name(message.state), message.pid) == (state, pid)
    assert message.exit_code == facts.get("exit_code", 0)


def test_the_user_that_the_shim_has_found_counts_once_there_is_one() -> None:
    made = record(made_at=11, uid=1, gid=2, groups=[2, 3])
    assert plain(container_message(made, SPEC).user) == {"uid": 1, "gid": 2, "additional_gids": [2, 3]}
    unnamed = record()
    unnamed.config.linux.security_context.ClearField("run_as_user")
    assert not container_message(unnamed, SPEC).HasField("user")


def test_resources_that_were_updated_go_before_those_of_the_configuration() -> None:
    updated = record(resources=cri.LinuxContainerResources(memory_limit_in_bytes=99, cpuset_cpus="5", unified={"a.b": "1"}))
    found = container_message(updated, SPEC).linux.resources
    assert (found.memory.limit.value, found.memory.reservation.value, found.cpu.cpus, found.cpu.mems) == (99, 5, "5", "1")
    assert dict(found.unified) == {"memory.high": "9", "a.b": "1"}


def test_resources_that_ask_for_nothing_say_nothing() -> None:
    assert plain(linux_resources(cri.LinuxContainerResources())) in ({}, {"memory": {}, "cpu": {}}, {"cpu": {}})
    assert not linux_resources(cri.LinuxContainerResources()).memory.HasField("limit")


def sandbox(**changes: Any) -> SandboxRecord:
    config = {
        "metadata": {"name": "pod", "uid": "u", "namespace": "ns"},
        "labels": {"l": "1"},
        "annotations": {"a": "1"},
        "linux": {"cgroup_parent": "/kubepods/pod0"},
    }
    facts: dict[str, Any] = {
        "id": "p0",
        "config": json_format.ParseDict(config, cri.PodSandboxConfig()),
        "handler": "runc",
        "created_at": 1,
        "ready_at": 2,
        "cgroup": "kubepods/pod0/p0",
        "ips": ["10.0.0.1", "fd00::1"],
        "pause_pid": 5,
        "overhead": cri.LinuxContainerResources(cpu_shares=3),
        "resources": cri.LinuxContainerResources(memory_limit_in_bytes=9),
    }
    return SandboxRecord(**(facts | changes))


def test_a_pod() -> None:
    message = pod_message(sandbox(), PATHS)
    paths = {namespace.type: namespace.path for namespace in message.linux.namespaces}
    assert paths == {
        "network": str(PATHS.netns("p0")),
        "uts": str(PATHS.namespace("p0", "uts")),
        "ipc": str(PATHS.namespace("p0", "ipc")),
        "pid": str(PATHS.namespace("p0", "pid")),
    }
    del message.linux.namespaces[:]
    found = plain(message)
    assert found["linux"].pop("pod_overhead")["cpu"] == {"shares": value("3")}
    assert found["linux"].pop("pod_resources")["memory"] == {"limit": value("9")}
    assert found == {
        "id": "p0",
        "name": "pod",
        "uid": "u",
        "namespace": "ns",
        "labels": {"l": "1"},
        "annotations": {"a": "1"},
        "runtime_handler": "runc",
        "linux": {"cgroup_parent": "/kubepods/pod0", "cgroups_path": "/kubepods/pod0/p0"},
        "pid": 5,
        "ips": ["10.0.0.1", "fd00::1"],
    }


def test_every_field_of_a_pod_is_filled() -> None:
    """But `resources`: there is no cgroup with limits that is the pause process's own."""
    message = pod_message(sandbox(), PATHS)
    assert {f.name for f, _ in message.ListFields()} == {f.name for f in nri.PodSandbox.DESCRIPTOR.fields}
    linux = {f.name for f, _ in message.linux.ListFields()}
    assert linux == {f.name for f in nri.LinuxPodSandbox.DESCRIPTOR.fields} - {"resources"}


def test_a_pod_on_the_nodes_namespaces_and_one_that_has_stopped_have_none() -> None:
    own = sandbox()
    options = own.config.linux.security_context.namespace_options
    options.network = options.ipc = cri.NODE
    options.pid = cri.CONTAINER
    assert [*pod_message(own, PATHS).linux.namespaces] == []
    assert [*pod_message(sandbox(stopped_at=3), PATHS, stopped=True).linux.namespaces] == []


@given(st.text(max_size=4))
def test_texts_of_any_kind_pass(text: str) -> None:
    spec = copy.deepcopy(SPEC)
    spec["process"]["env"].append(f"X={text}")
    spec["annotations"][text] = text
    container_message(record(), spec).SerializeToString()


def test_a_seccomp_policy_is_converted_once() -> None:
    """It is most of a container's message, and most containers have the same."""
    from runtime.nri import messages  # noqa: PLC0415

    def policy(action: str) -> dict[str, Any]:
        return {"linux": {"seccomp": {"defaultAction": action, "syscalls": [{"names": ["once"], "action": "SCMP_ACT_LOG"}]}}}

    before = messages._encoded_seccomp.cache_info()
    found = [
        container_message(record(), policy(action)).linux.seccomp_policy.default_action
        for action in ("once", "once", "other")
    ]
    after = messages._encoded_seccomp.cache_info()
    assert found == ["once", "once", "other"]
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 2)
