"""Adjustments on an OCI configuration: what each does, what is refused, and what is derived of the result."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from kernel.capabilities import NAMES
from kernel.cgroups import Hierarchies, Mode
from kernel.mounts import Mount
from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from proto.errors import Code, CrispError
from runtime.host.handlers import FIELDS, Features
from runtime.host.host import Host
from runtime.nri import amounts
from runtime.nri.apply import Adjusted, Circumstances, adjusted
from runtime.nri.errors import Conflict, Refused
from runtime.nri.merge import CreateResult
from runtime.nri.messages import container_message
from runtime.oci import document, systemd_limits
from runtime.oci import resources as oci_resources
from runtime.records import ContainerRecord
from tests.harness.protobuf_strategies import filled, messages

MIB = 1 << 20

CDI = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/net",
    "containerEdits": {"env": ["COMMON=1"]},
    "devices": [
        {"name": "a", "containerEdits": {"env": ["A=1"], "additionalGids": [44]}},
        {"name": "b", "containerEdits": {"env": ["B=1"]}},
    ],
}


def host(v2: bool = True, systemd: bool = False, **changes: Any) -> Host:
    facts: dict[str, Any] = {
        "capabilities": frozenset(NAMES),
        "known_capabilities": frozenset(NAMES),
        "hierarchies": Hierarchies(
            Mode.V2 if v2 else Mode.V1, {"hugetlb": "/nowhere/h", "memory": "/nowhere/m"}, "/nowhere"
        ),
        "systemd_cgroups": systemd,
        "has_swap_accounting": True,
        "has_seccomp": True,
        "has_apparmor": False,
        "has_selinux": False,
        "has_mqueue": True,
        "has_project_quota": False,
        "lowest_oom_score_adj": -1000,
        "nofile_limit": 4096,
    }
    return Host(**(facts | changes))


def specification() -> dict[str, Any]:
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": False},
        "process": {
            "args": ["/app", "x"],
            "env": ["PATH=/bin", "A=own"],
            "cwd": "/",
            "oomScoreAdj": 10,
            "capabilities": {"bounding": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind", "rprivate"]},
        ],
        "annotations": {"k": "v", "run.oci.systemd.subgroup": ""},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/n"}, {"type": "pid"}],
            "cgroupsPath": "/pod/c0",
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 9, "minor": 9, "access": "rw"},
                ],
                "memory": {"limit": 64 * MIB, "swap": 64 * MIB},
                "cpu": {"shares": 512},
            },
            "devices": [{"path": "/dev/own", "type": "c", "major": 9, "minor": 9}],
        },
    }
    return spec


RESOURCES = cri.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, cpu_shares=512, oom_score_adj=10)


def circumstances(cdi: Path | None = None, fields: tuple[str, ...] = FIELDS, **facts: Any) -> Circumstances:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="web"))
    return Circumstances(
        container_id="c0",
        config=config,
        resources=RESOURCES,
        host=host(**facts),
        handler="crun",
        features=Features("1.0", recursive_read_only=False, fields=frozenset(fields)),
        cdi_spec_dirs=[cdi] if cdi else [],
    )


def made(asked: dict[str, Any], here: Circumstances | None = None) -> Adjusted:
    spec = specification()
    before = copy.deepcopy(spec)
    result = adjusted(spec, json_format.ParseDict(asked, nri.ContainerAdjustment()), here or circumstances())
    assert spec == before, "the given one stays as it is"
    document.encode(result.spec)
    return result


def changes(asked: dict[str, Any], here: Circumstances | None = None) -> dict[str, Any]:
    """What is otherwise after an adjustment, by path."""
    return dict(_differences(specification(), made(asked, here).spec, ""))


def _differences(before: Any, after: Any, place: str) -> Any:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from _differences(before.get(key), after.get(key), f"{place}.{key}".lstrip("."))
    elif before != after:
        yield place, after


def value(number: Any) -> dict[str, Any]:
    return {"value": number}


def linux(**fields: Any) -> dict[str, Any]:
    return {"linux": fields}


def resources(**fields: Any) -> dict[str, Any]:
    return {"linux": {"resources": fields}}


DENY = {"allow": False, "access": "rwm"}
OWN_RULE = {"allow": True, "type": "c", "major": 9, "minor": 9, "access": "rw"}
OWN_NODE = {"path": "/dev/own", "type": "c", "major": 9, "minor": 9}
PROC, HOSTS = specification()["mounts"]

APPLIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "annotations": (
        {"annotations": {"a": "1", "-k": ""}},
        {"annotations.a": "1", "annotations.k": None},
    ),
    "env": (
        {"env": [{"key": "A", "value": "x=y"}, {"key": "B"}, {"key": "-PATH"}]},
        {"process.env": ["A=x=y", "B="]},
    ),
    "args": ({"args": ["/other"]}, {"process.args": ["/other"]}),
    "hooks": (
        {
            "hooks": {
                "prestart": [{"path": "/a", "args": ["a", "b"], "env": ["C=1"], "timeout": value("3")}],
                "create_runtime": [{"path": "/b"}],
                "create_container": [{"path": "/c"}],
                "start_container": [{"path": "/d"}],
                "poststart": [{"path": "/e"}],
                "poststop": [{"path": "/f"}, {"path": "/g"}],
            }
        },
        {
            "hooks": {
                "prestart": [{"path": "/a", "args": ["a", "b"], "env": ["C=1"], "timeout": 3}],
                "createRuntime": [{"path": "/b"}],
                "createContainer": [{"path": "/c"}],
                "startContainer": [{"path": "/d"}],
                "poststart": [{"path": "/e"}],
                "poststop": [{"path": "/f"}, {"path": "/g"}],
            }
        },
    ),
    "a device": (
        linux(
            devices=[{"path": "/dev/x", "type": "c", "major": "1", "minor": "3", "file_mode": value(0o660), "uid": value(5)}]
        ),
        {
            "linux.devices": [
                OWN_NODE,
                {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o660, "uid": 5},
            ],
            "linux.resources.devices": [
                DENY,
                OWN_RULE,
                {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            ],
        },
    ),
    "a block device": (
        linux(devices=[{"path": "/dev/x", "type": "b", "major": "8", "minor": "0"}]),
        {
            "linux.devices": [OWN_NODE, {"path": "/dev/x", "type": "b", "major": 8, "minor": 0}],
            "linux.resources.devices": [
                DENY,
                OWN_RULE,
                {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
            ],
        },
    ),
    "a fifo": (
        linux(devices=[{"path": "/dev/x", "type": "p"}]),
        {"linux.devices": [OWN_NODE, {"path": "/dev/x", "type": "p"}]},
    ),
    "a device that is removed": (
        linux(devices=[{"path": "-/dev/own"}]),
        {"linux.devices": [], "linux.resources.devices": [DENY]},
    ),
    "device rules": (
        resources(devices=[{"allow": True, "type": "b", "major": value("8"), "access": "r"}, {"access": "rwm"}]),
        {
            "linux.resources.devices": [
                DENY,
                OWN_RULE,
                {"allow": True, "type": "b", "major": 8, "access": "r"},
                {"allow": False, "access": "rwm"},
            ]
        },
    ),
    "oom score": (linux(oom_score_adj=value("-7")), {"process.oomScoreAdj": -7}),
    "I/O priority": (
        linux(io_priority={"class": "IOPRIO_CLASS_BE", "priority": 6}),
        {"process.ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}},
    ),
    "no I/O priority": (linux(io_priority={}), {}),
    "scheduler": (
        linux(scheduler={"policy": "SCHED_RR", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
        {"process.scheduler": {"policy": "SCHED_RR", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}},
    ),
    "deadline": (
        linux(scheduler={"policy": "SCHED_DEADLINE", "runtime": "1000000", "deadline": "2000000"}),
        {"process.scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1000000, "deadline": 2000000}},
    ),
    "no scheduler": (linux(scheduler={}), {}),
    "seccomp": (
        linux(
            seccomp_policy={
                "default_action": "SCMP_ACT_ERRNO",
                "default_errno": value(38),
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "listener_path": "/run/a.sock",
                "listener_metadata": "m",
                "syscalls": [
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                    {
                        "names": ["write"],
                        "action": "SCMP_ACT_ERRNO",
                        "errno_ret": value(1),
                        "args": [{"index": 1, "value": "2", "value_two": "3", "op": "SCMP_CMP_EQ"}],
                    },
                ],
            }
        ),
        {
            "linux.seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "listenerPath": "/run/a.sock",
                "listenerMetadata": "m",
                "syscalls": [
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                    {
                        "names": ["write"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 1,
                        "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
                    },
                ],
            }
        },
    ),
    "namespaces": (
        linux(namespaces=[{"type": "network", "path": "/m"}, {"type": "-pid"}, {"type": "cgroup"}]),
        {"linux.namespaces": [{"type": "mount"}, {"type": "network", "path": "/m"}, {"type": "cgroup"}]},
    ),
    "sysctls": (
        linux(sysctl={"net.core.somaxconn": "9", "-net.a": ""}),
        {"linux.sysctl": {"net.core.somaxconn": "9"}},
    ),
    "network devices": (
        linux(net_devices={"eth9": {"name": "net1"}, "eth8": {}}),
        {"linux.netDevices": {"eth8": {}, "eth9": {"name": "net1"}}},
    ),
    "memory policy": (
        linux(memory_policy={"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
        {"linux.memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}},
    ),
    "memory": (
        resources(memory={"limit": value(str(9 * MIB)), "reservation": value(str(MIB))}),
        {
            "linux.resources.memory.limit": 9 * MIB,
            "linux.resources.memory.swap": 9 * MIB,
            "linux.resources.memory.reservation": MIB,
        },
    ),
    "memory and swap": (
        resources(memory={"limit": value(str(9 * MIB)), "swap": value(str(10 * MIB))}),
        {"linux.resources.memory.limit": 9 * MIB, "linux.resources.memory.swap": 10 * MIB},
    ),
    "a limit of zero": (resources(memory={"limit": value("0")}), {}),
    "cpu": (
        resources(
            cpu={"shares": value("9"), "quota": value("2000"), "period": value("50000"), "cpus": "0-1", "mems": "0"},
        ),
        {
            "linux.resources.cpu.shares": 9,
            "linux.resources.cpu.quota": 2000,
            "linux.resources.cpu.period": 50000,
            "linux.resources.cpu.cpus": "0-1",
            "linux.resources.cpu.mems": "0",
        },
    ),
    "no shares": (resources(cpu={"shares": value("0")}), {"linux.resources.cpu.shares": None}),
    "huge pages": (
        resources(hugepage_limits=[{"page_size": "2MB", "limit": "4"}]),
        {"linux.resources.hugepageLimits": [{"pageSize": "2MB", "limit": 4}]},
    ),
    "unified": (
        resources(unified={"memory.high": "4", "memory.swap.max": "1"}),
        {"linux.resources.unified": {"memory.high": "4", "memory.swap.max": "1"}, "linux.resources.memory.swap": None},
    ),
    "processes": (resources(pids={"limit": "9"}), {"linux.resources.pids": {"limit": 9}}),
    "any number of processes": (resources(pids={"limit": "-1"}), {"linux.resources.pids": {"limit": -1}}),
    "no classes": (resources(blockio_class=value(""), rdt_class=value("")), {}),
    "RDT that is removed": (linux(rdt={"remove": True}), {}),
    "a mount": (
        {"mounts": [{"destination": "/data/", "type": "bind", "source": "/srv", "options": ["rbind", "ro", "relabel"]}]},
        {
            "mounts": [
                PROC,
                {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]},
                HOSTS,
            ]
        },
    ),
    "a mount that is replaced": (
        {"mounts": [{"destination": "/etc/hosts", "type": "tmpfs", "source": "tmpfs"}]},
        {"mounts": [PROC, {"destination": "/etc/hosts", "type": "tmpfs", "source": "tmpfs", "options": []}]},
    ),
    "a mount that is removed": ({"mounts": [{"destination": "-/etc/hosts"}]}, {"mounts": [PROC]}),
    "limits": (
        {
            "rlimits": [
                {"type": "RLIMIT_CORE", "soft": "1", "hard": "2"},
                {"type": "RLIMIT_NOFILE", "soft": "9", "hard": "99999999"},
            ]
        },
        {
            "process.rlimits": [
                {"type": "RLIMIT_CORE", "soft": 1, "hard": 2},
                {"type": "RLIMIT_NOFILE", "soft": 9, "hard": 4096},
            ]
        },
    ),
}


@pytest.mark.parametrize("name", APPLIED)
def test_what_an_adjustment_changes(name: str) -> None:
    asked, expected = APPLIED[name]
    assert changes(asked) == expected


V1_ONLY = resources(
    memory={
        "kernel": value("1"),
        "kernel_tcp": value("2"),
        "swappiness": value("3"),
        "disable_oom_killer": value(True),
        "use_hierarchy": value(True),
    },
    cpu={"realtime_runtime": value("4"), "realtime_period": value("5")},
)


def test_what_only_cgroup_v1_has() -> None:
    assert changes(V1_ONLY, circumstances(v2=False)) == {
        "linux.resources.memory.kernel": 1,
        "linux.resources.memory.kernelTCP": 2,
        "linux.resources.memory.swappiness": 3,
        "linux.resources.memory.disableOOMKiller": True,
        "linux.resources.memory.useHierarchy": True,
        "linux.resources.cpu.realtimeRuntime": 4,
        "linux.resources.cpu.realtimePeriod": 5,
    }
    assert changes(V1_ONLY) == {}, "withheld in v2"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an annotation without a key": ({"annotations": {"": "1"}}, "empty key"),
    "crisp's annotation": ({"annotations": {"run.oci.systemd.subgroup": "x"}}, "crisp's own"),
    "crisp's annotation removed": ({"annotations": {"-run.oci.systemd.subgroup": ""}}, "crisp's own"),
    "a variable without a name": ({"env": [{"key": "", "value": "1"}]}, "no name of a variable"),
    "a variable's name with =": ({"env": [{"key": "A=B"}]}, "'A=B'"),
    "an empty command": ({"args": [""]}, "empty"),
    "a hook's path": ({"hooks": {"poststop": [{"path": "a"}]}}, "'a' is not an absolute path"),
    "a hook's timeout": ({"hooks": {"poststop": [{"path": "/a", "timeout": value("-1")}]}}, "timeout"),
    "a CDI device's name": ({"CDI_devices": [{"name": "x"}]}, "VENDOR/CLASS=NAME"),
    "a CDI device": ({"CDI_devices": [{"name": "vendor.com/net=a"}]}, "not defined"),
    "a device's path": (linux(devices=[{"path": "x", "type": "c"}]), "'x' is not an absolute path"),
    "a device's type": (linux(devices=[{"path": "/dev/x", "type": "z"}]), "type 'z'"),
    "a device's numbers": (linux(devices=[{"path": "/dev/x", "type": "c", "major": "-1"}]), "-1:0"),
    "a rule's type": (resources(devices=[{"type": "z", "access": "r"}]), "'z'"),
    "a rule's access": (resources(devices=[{"access": "x"}]), "'x'"),
    "a cgroups path upwards": (linux(cgroups_path="/../a"), "no path of a control group"),
    "the root's cgroup": (linux(cgroups_path="/"), "no path of a control group"),
    "an oom score": (linux(oom_score_adj=value("1001")), "1001"),
    "an I/O priority": (linux(io_priority={"class": 2, "priority": 8}), "I/O priority 8"),
    "an I/O class": (linux(io_priority={"class": 9}), "9 is no IOPrioClass"),
    "a policy": (linux(scheduler={"policy": 77}), "77 is no LinuxSchedulerPolicy"),
    "SCHED_ISO": (linux(scheduler={"policy": "SCHED_ISO"}), "SCHED_ISO"),
    "nice": (linux(scheduler={"policy": "SCHED_OTHER", "nice": 20}), "nice 20"),
    "a priority": (linux(scheduler={"policy": "SCHED_FIFO"}), "1 to 99"),
    "a priority of none": (linux(scheduler={"policy": "SCHED_BATCH", "priority": 3}), "SCHED_BATCH"),
    "a deadline": (
        linux(scheduler={"policy": "SCHED_DEADLINE", "runtime": "9", "deadline": "3"}),
        "each is at most the next",
    ),
    "a flag": (linux(scheduler={"policy": "SCHED_OTHER", "flags": [55]}), "55 is no LinuxSchedulerFlag"),
    "a seccomp action": (linux(seccomp_policy={"default_action": "NO"}), "defaultAction"),
    "a seccomp operator": (
        linux(
            seccomp_policy={
                "default_action": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"op": "NO"}]}],
            }
        ),
        "op",
    ),
    "the mount namespace": (linux(namespaces=[{"type": "-mount"}]), "'mount'"),
    "the user namespace": (linux(namespaces=[{"type": "user"}]), "'user'"),
    "a namespace's path": (linux(namespaces=[{"type": "pid", "path": "x"}]), "not absolute"),
    "a sysctl": (linux(sysctl={"net/../kernel": "1"}), "no name of a sysctl"),
    "a network device's name": (linux(net_devices={"a/b": {}}), "'a/b'"),
    "a network device's new name": (linux(net_devices={"eth9": {"name": "much-too-long-a-name"}}), "much-too-long"),
    "a memory policy": (linux(memory_policy={"mode": 66}), "66 is no MpolMode"),
    "shares": (resources(cpu={"shares": value(str(2**64 - 1))}), "cpu.shares"),
    "a quota": (resources(cpu={"quota": value("-5")}), "cpu_quota -5"),
    "processors": (resources(cpu={"cpus": "all"}), "cpuset_cpus"),
    "a memory limit": (resources(memory={"limit": value("-2")}), "memory_limit_in_bytes -2"),
    "less swap than memory": (resources(memory={"swap": value("1")}), "memory_swap_limit_in_bytes"),
    "a control file": (resources(unified={"../x": "1"}), "'../x'"),
    "a block I/O class": (resources(blockio_class=value("low")), "blockio_config_file is not set"),
    "an RDT class": (resources(rdt_class=value("a/../b")), "RDT"),
    "RDT": (linux(rdt={"clos_id": value("a")}), "no resctrl|no name"),
    "a mount's destination": ({"mounts": [{"destination": "x"}]}, "'x'"),
    "a mount of the root": ({"mounts": [{"destination": "/a/..", "source": "/b"}]}, "'/a/..'"),
    "a mount's source": ({"mounts": [{"destination": "/a", "type": "bind", "source": "b"}]}, "'b'"),
    "a limit's name": ({"rlimits": [{"type": "RLIMIT_X"}]}, "'RLIMIT_X'"),
    "a limit's soft value": ({"rlimits": [{"type": "RLIMIT_CORE", "soft": "2", "hard": "1"}]}, "above the hard"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_given_is_refused(name: str) -> None:
    asked, told = REFUSED[name]
    with pytest.raises(Refused, match=told) as caught:
        made(asked)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert "NRI plugins" in caught.value.message
    assert "container web" in caught.value.message


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (linux(net_devices={"eth9": {}}), "netDevices"),
        (linux(memory_policy={"mode": "MPOL_BIND", "nodes": "0"}), "memoryPolicy"),
    ],
)
def test_a_runtime_that_would_pass_it_over_gets_none(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused, match=f"crun 1.0 knows no .*{field}"):
        made(asked, circumstances(fields=tuple({*FIELDS} - {field})))


def test_the_record_follows() -> None:
    both = {
        "linux": {
            "oom_score_adj": value("5"),
            "resources": {
                "memory": {"limit": value(str(9 * MIB))},
                "cpu": {"quota": value("2000"), "cpus": "0"},
                "hugepage_limits": [{"page_size": "2MB", "limit": "4"}],
                "unified": {"memory.high": "5"},
            },
        }
    }
    assert made(both).resources == cri.LinuxContainerResources(
        memory_limit_in_bytes=9 * MIB,
        cpu_shares=512,
        cpu_quota=2000,
        cpuset_cpus="0",
        oom_score_adj=5,
        hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=4)],
        unified={"memory.high": "5"},
    )
    assert made({}).resources == RESOURCES


def test_systemd_is_told_what_comes_out() -> None:
    here = circumstances(systemd=True)
    spec = specification()
    spec["annotations"] |= systemd_limits.new_annotations(spec["linux"]["resources"])
    asked = resources(memory={"limit": value(str(9 * MIB))}, pids={"limit": "7"}, cpu={"shares": value("0")})
    asked["annotations"] = {"org.systemd.property.CPUWeight": "uint64 5"}
    result = adjusted(spec, json_format.ParseDict(asked, nri.ContainerAdjustment()), here).spec
    properties = {key: text for key, text in result["annotations"].items() if key.startswith(systemd_limits.PREFIX)}
    assert properties == systemd_limits.new_annotations(result["linux"]["resources"]) | {
        "org.systemd.property.CPUWeight": "uint64 5"
    }
    assert properties["org.systemd.property.MemoryMax"] == f"uint64 {9 * MIB}"
    assert properties["org.systemd.property.TasksMax"] == "uint64 7"


@pytest.mark.parametrize(
    ("systemd", "path", "cgroup"),
    [
        (False, "/kubepods/other", "kubepods/other"),
        (False, "kubepods/other", "kubepods/other"),
        (True, "a-b.slice:crisp:c0", "a.slice/a-b.slice/crisp-c0.scope"),
        (True, "system.slice::c0", "system.slice/c0.scope"),
    ],
)
def test_another_cgroup(systemd: bool, path: str, cgroup: str) -> None:
    result = made(linux(cgroups_path=path), circumstances(systemd=systemd))
    assert result.cgroup == cgroup
    assert result.spec["linux"]["cgroupsPath"] == path


@pytest.mark.parametrize("path", ["/a/b", "a:b:c", "a.slice:b:c.slice", "a.slice:b:", "a.slice:b:c:d", "a.slice:b/..:c"])
def test_systemds_driver_has_its_own_form_of_paths(path: str) -> None:
    with pytest.raises(Refused, match=r"SLICE:PREFIX:NAME|no path"):
        made(linux(cgroups_path=path), circumstances(systemd=True))


def test_a_cgroup_that_is_there_belongs_to_others(tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    facts = {"hierarchies": Hierarchies(Mode.V2, {"memory": str(tmp_path)}, str(tmp_path))}
    with pytest.raises(Refused, match="'/busy' is a group that is there"):
        made(linux(cgroups_path="/busy"), circumstances(**facts))
    assert made(linux(cgroups_path="/busy/new"), circumstances(**facts)).cgroup == "busy/new"


def test_cdi_devices(tmp_path: Path) -> None:
    (tmp_path / "vendor.json").write_text(json.dumps(CDI))
    here = circumstances(tmp_path)
    asked = {
        "CDI_devices": [{"name": "vendor.com/net=a"}, {"name": "vendor.com/net=b"}],
        "env": [{"key": "A", "value": "0"}],
    }
    result = made(asked, here).spec
    assert result["process"]["env"] == ["PATH=/bin", "A=1", "COMMON=1", "B=1"]
    assert result["process"]["user"] == {"additionalGids": [44]}


def test_a_cdi_device_that_the_request_names_too_is_not_given_twice(tmp_path: Path) -> None:
    hook = {"hookName": "poststop", "path": "/a"}
    (tmp_path / "vendor.json").write_text(json.dumps(CDI | {"containerEdits": {"hooks": [hook]}}))
    here = circumstances(tmp_path)
    here.config.CDI_devices.add(name="vendor.com/net=a")
    result = made({"CDI_devices": [{"name": "vendor.com/net=a"}, {"name": "vendor.com/net=b"}]}, here).spec
    assert result["process"]["env"] == ["PATH=/bin", "A=own", "B=1"]
    assert "hooks" not in result


def test_shared_mounts_make_the_root_pass_on_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def mount(point: bytes, number: int, parent: int, shared: int, master: int) -> Mount:
        return Mount(number, parent, b"0:1", b"/", point, (b"rw",), shared, master, False, b"tmpfs", b"tmpfs", ())

    table = [mount(b"/", 1, 0, 0, 0), mount(b"/s", 2, 1, 7, 0), mount(b"/l", 3, 1, 0, 7), mount(b"/p", 4, 1, 0, 0)]
    monkeypatch.setattr("kernel.mounts.mountinfo", lambda: table)

    def given(source: str, propagation: str) -> tuple[Any, Any]:
        found = made(
            {"mounts": [{"destination": "/a", "type": "bind", "source": source, "options": ["rbind", propagation]}]}
        )
        options = next(m["options"] for m in found.spec["mounts"] if m["destination"] == "/a")
        return options[-1], found.spec["linux"].get("rootfsPropagation")

    assert given("/s/x", "rshared") == ("rshared", "rshared")
    assert given("/s/x", "rslave") == ("rslave", "rslave")
    assert given("/l/x", "rslave") == ("rslave", "rslave")
    assert given("/x", "rslave") == ("rprivate", None), "the host's root is private"
    assert given("/p/x", "rprivate") == ("rprivate", None)
    assert given("//s/x", "rslave") == ("rslave", "rslave")
    other = {"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["rslave"]}
    assert "rootfsPropagation" not in made({"mounts": [other]}).spec["linux"], "it has no source that passes on anything"
    for source, propagation in (("/l/x", "rshared"), ("/p/x", "rslave")):
        with pytest.raises(Refused, match=f"{source} is no shared"):
            given(source, propagation)


@pytest.mark.parametrize("leaf", filled(nri.ContainerAdjustment), ids=lambda leaf: leaf[0])
def test_each_field_of_an_adjustment_changes_something_or_is_refused(leaf: tuple[str, nri.ContainerAdjustment]) -> None:
    """The protocol's own description is walked: a field that it gets one day, and that is passed over here, fails."""
    path, asked = leaf
    without, spec = nri.ContainerAdjustment(), specification()
    spec["linux"]["intelRdt"] = {"closID": "a"}
    for message in (without, asked):
        if path.startswith("linux.scheduler."):
            message.linux.scheduler.policy = message.linux.scheduler.policy or nri.SCHED_OTHER
        if path == "linux.io_priority.priority":
            setattr(message.linux.io_priority, "class", nri.IOPRIO_CLASS_BE)
    changed = False
    for v2 in (True, False):
        here = circumstances(v2=v2)
        try:
            changed = changed or adjusted(spec, asked, here) != adjusted(spec, without, here)
        except Refused:
            changed = True
    assert changed


@given(st.lists(messages(nri.ContainerAdjustment, entries=2), max_size=2), st.booleans(), st.booleans())
def test_whatever_is_asked_is_given_or_refused(asked: list[nri.ContainerAdjustment], v2: bool, systemd: bool) -> None:
    record = ContainerRecord(
        id="c0", sandbox_id="p0", config=circumstances().config, image_id="i", log_path="", created_at=1, resources=RESOURCES
    )
    result = CreateResult(nri.PodSandbox(), container_message(record, specification()))
    try:
        for index, adjustment in enumerate(asked):
            result.add(f"{index:02}-p", nri.CreateContainerResponse(adjust=adjustment))
        made = adjusted(specification(), result.adjustment, circumstances(v2=v2, systemd=systemd))
    except (Conflict, Refused):
        return
    json.dumps(made.spec)
    container_message(record, made.spec).SerializeToString()


@pytest.mark.parametrize("v2", [True, False])
def test_an_update_of_a_container_that_is_there(v2: bool) -> None:
    asked = {
        "memory": {"limit": value(str(9 * MIB)), "reservation": value("5"), "swappiness": value("6")},
        "cpu": {"quota": value("2000"), "realtime_runtime": value("7")},
        "pids": {"limit": "8"},
        "unified": {"memory.high": "9"},
    }
    base = cri.LinuxContainerResources(cpu_shares=3, oom_score_adj=4, memory_swap_limit_in_bytes=99 * MIB)
    found, beyond = amounts.changes(base, json_format.ParseDict(asked, nri.LinuxResources()), host(v2=v2), "")
    assert found == cri.LinuxContainerResources(
        cpu_shares=3, oom_score_adj=4, memory_limit_in_bytes=9 * MIB, cpu_quota=2000, unified={"memory.high": "9"}
    )
    v1 = {} if v2 else {"swappiness": 6}
    expected = {"memory": {"reservation": 5, **v1}, "pids": {"limit": 8}}
    assert beyond == (expected if v2 else expected | {"cpu": {"realtimeRuntime": 7}})


def test_who_is_at_fault_in_an_update() -> None:
    wrong = json_format.ParseDict({"cpu": {"shares": value("1")}}, nri.LinuxResources())
    with pytest.raises(Refused, match=r"NRI plugins ask for .* cpu_shares 1"):
        amounts.changes(cri.LinuxContainerResources(), wrong, host(), "")
    with pytest.raises(CrispError, match="cpu_shares 1") as caught:
        amounts.changes(cri.LinuxContainerResources(cpu_shares=1), nri.LinuxResources(), host(), "")
    assert caught.value.code is Code.INVALID_ARGUMENT


@given(messages(nri.LinuxResources), st.booleans())
def test_whatever_an_update_asks_for_is_taken_or_refused(asked: nri.LinuxResources, v2: bool) -> None:
    try:
        found, beyond = amounts.changes(cri.LinuxContainerResources(), asked, host(v2=v2), "")
    except Refused:
        return
    oci_resources.build(found, host(v2=v2))
    json.dumps(beyond)


def test_classes_of_block_io(tmp_path: Path) -> None:
    path = tmp_path / "blockio.yaml"
    path.write_text("Classes: {low: [{Weight: 80}]}")
    here = dataclasses.replace(circumstances(), blockio_config_file=str(path))
    assert changes(resources(blockio_class=value("low")), here) == {"linux.resources.blockIO": {"weight": 80}}
    with pytest.raises(Refused, match="'high' is not in"):
        made(resources(blockio_class=value("high")), here)
