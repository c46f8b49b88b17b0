"""Adjustments of several plugins, merged: each field, who owns it, and what contradicts what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from proto import nri_pb2 as nri
from runtime.nri.errors import Conflict
from runtime.nri.merge import CreateResult, StopResult, UpdateResult
from tests.harness.protobuf_strategies import filled, messages

ID = "c0"
POD = nri.PodSandbox(id="p0")


def container(**fields: Any) -> nri.Container:
    return json_format.ParseDict({"id": ID, **fields}, nri.Container())


def reply(adjust: dict[str, Any] | None = None, **more: Any) -> nri.CreateContainerResponse:
    return json_format.ParseDict({"adjust": adjust or {}, **more}, nri.CreateContainerResponse())


def plain(message: Any) -> dict[str, Any]:
    return _stripped(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _stripped(document: dict[str, Any]) -> dict[str, Any]:
    """Without groups of fields in which nothing is set; an optional value that is empty is zero, and stays."""
    inner = {key: _stripped(v) if isinstance(v, dict) else v for key, v in document.items()}
    return {key: v for key, v in inner.items() if v or key not in ("adjust", "hooks", "linux", "resources", "memory", "cpu")}


def merged(*adjustments: dict[str, Any], of: nri.Container | None = None) -> CreateResult:
    result = CreateResult(POD, of or container())
    for index, adjustment in enumerate(adjustments):
        result.add(f"{index:02}-p{index}", reply(adjustment))
    return result


def linux(**fields: Any) -> dict[str, Any]:
    return {"linux": fields}


def resources(**fields: Any) -> dict[str, Any]:
    return {"linux": {"resources": fields}}


def value(number: Any) -> dict[str, Any]:
    return {"value": number}


ONE_OWNER = {
    "Annotations": ({"annotations": {"a": "1"}}, "a"),
    "Mounts": ({"mounts": [{"destination": "/a", "source": "/b", "type": "bind"}]}, "/a"),
    "Devices": (linux(devices=[{"path": "/dev/a", "type": "c", "major": "1"}]), "/dev/a"),
    "CdiDevices": ({"CDI_devices": [{"name": "v/c=a"}]}, "v/c=a"),
    "Env": ({"env": [{"key": "A", "value": "1"}]}, "A"),
    "Args": ({"args": ["a", "b"]}, None),
    "MemLimit": (resources(memory={"limit": value("4096")}), None),
    "MemReservation": (resources(memory={"reservation": value("4096")}), None),
    "MemSwapLimit": (resources(memory={"swap": value("4096")}), None),
    "MemKernelLimit": (resources(memory={"kernel": value("4096")}), None),
    "MemTCPLimit": (resources(memory={"kernel_tcp": value("4096")}), None),
    "MemSwappiness": (resources(memory={"swappiness": value("4")}), None),
    "MemDisableOomKiller": (resources(memory={"disable_oom_killer": value(True)}), None),
    "MemUseHierarchy": (resources(memory={"use_hierarchy": value(True)}), None),
    "CPUShares": (resources(cpu={"shares": value("4")}), None),
    "CPUQuota": (resources(cpu={"quota": value("4")}), None),
    "CPUPeriod": (resources(cpu={"period": value("4")}), None),
    "CPURealtimeRuntime": (resources(cpu={"realtime_runtime": value("4")}), None),
    "CPURealtimePeriod": (resources(cpu={"realtime_period": value("4")}), None),
    "CPUSetCPUs": (resources(cpu={"cpus": "0-1"}), None),
    "CPUSetMems": (resources(cpu={"mems": "0"}), None),
    "PidsLimit": (resources(pids={"limit": "4"}), None),
    "HugepageLimits": (resources(hugepage_limits=[{"page_size": "2MB", "limit": "4"}]), "2MB"),
    "BlockioClass": (resources(blockio_class=value("a")), None),
    "RdtClass": (resources(rdt_class=value("a")), None),
    "CgroupsUnified": (resources(unified={"memory.high": "4"}), "memory.high"),
    "CgroupsPath": (linux(cgroups_path="/a"), None),
    "OomScoreAdj": (linux(oom_score_adj=value("4")), None),
    "Rlimits": ({"rlimits": [{"type": "RLIMIT_CORE", "hard": "1", "soft": "1"}]}, "RLIMIT_CORE"),
    "IoPriority": (linux(io_priority={"class": "IOPRIO_CLASS_BE", "priority": 3}), None),
    "SeccompPolicy": (linux(seccomp_policy={"default_action": "SCMP_ACT_ALLOW"}), None),
    "Namespace": (linux(namespaces=[{"type": "network", "path": "/a"}]), "network"),
    "Sysctl": (linux(sysctl={"net.a": "1"}), "net.a"),
    "LinuxNetDevices": (linux(net_devices={"eth9": {"name": "net1"}}), "eth9"),
    "LinuxSched": (linux(scheduler={"policy": "SCHED_BATCH", "nice": 4}), None),
    "RdtClosID": (linux(rdt={"clos_id": value("a")}), None),
    "RdtSchemata": (linux(rdt={"schemata": {"value": ["L3:0=f"]}}), None),
    "RdtEnableMonitoring": (linux(rdt={"enable_monitoring": value(True)}), None),
    "MemoryPolicy": (linux(memory_policy={"mode": "MPOL_BIND", "nodes": "0"}), None),
}
"""Each field of an adjustment, and the key of its entry."""

UNOWNED = ("linux.resources.devices", "linux.rdt.remove")
"""What may be asked for by many, or of which what it removes is owned."""

SHARED = ("NoField", "OciHooks")


def test_each_field_that_nri_knows_is_in_the_table() -> None:
    assert {*ONE_OWNER, *SHARED} == {*nri.Field.keys()}


@pytest.mark.parametrize("name", sorted(ONE_OWNER))
def test_a_field_is_taken_and_owned(name: str) -> None:
    adjustment, key = ONE_OWNER[name]
    result = merged(adjustment)
    assert plain(result.adjustment) == plain(reply(adjustment).adjust)
    owners = result.owners.owners[ID]
    field = nri.Field.Value(name)
    assert (owners.simple[field] if key is None else owners.compound[field].owners[key]) == "00-p0"


@pytest.mark.parametrize("name", sorted(ONE_OWNER))
def test_two_plugins_that_set_a_field_are_in_conflict(name: str) -> None:
    adjustment, key = ONE_OWNER[name]
    result = merged(adjustment)
    with pytest.raises(Conflict, match=f"plugins 00-p0 and 01-p1 both set {name}") as caught:
        result.add("01-p1", reply(adjustment))
    assert key is None or key in caught.value.message
    assert ID in caught.value.message


@pytest.mark.parametrize("name", sorted(ONE_OWNER))
def test_others_see_what_a_plugin_has_set(name: str) -> None:
    """All but two fields are in the container's message too."""
    result = merged(ONE_OWNER[name][0])
    assert (plain(result.container) == {"id": ID}) == (name in ("CdiDevices", "MemoryPolicy"))
    assert result.request().container == result.container
    assert plain(result.pristine) == {"id": ID}


def test_plugins_that_want_nothing_leave_nothing() -> None:
    own = container(args=["x"], linux={"resources": {"memory": {"limit": value("9")}}})
    result = merged({}, {"hooks": {}, "linux": {"resources": {"memory": {}, "cpu": {}}}}, of=own)
    assert result.adjustment.ByteSize() == 0
    assert result.container == own


@pytest.mark.parametrize("repeated", ["mounts", "env", "rlimits", "CDI_devices", "devices", "namespaces", "hugepages"])
def test_a_plugin_that_sets_an_entry_twice_contradicts_itself(repeated: str) -> None:
    entries = {
        "mounts": {"mounts": [{"destination": "/a"}] * 2},
        "env": {"env": [{"key": "A", "value": "1"}, {"key": "A", "value": "2"}]},
        "rlimits": {"rlimits": [{"type": "RLIMIT_CORE"}] * 2},
        "CDI_devices": {"CDI_devices": [{"name": "v/c=a"}] * 2},
        "devices": linux(devices=[{"path": "/dev/a"}] * 2),
        "namespaces": linux(namespaces=[{"type": "pid"}, {"type": "-pid"}]),
        "hugepages": resources(hugepage_limits=[{"page_size": "2MB"}] * 2),
    }
    with pytest.raises(Conflict, match="twice"):
        merged(entries[repeated])


REMOVABLE = {
    "annotations": (lambda key: {"annotations": {key: ""}}, "a", {"annotations": {"a": "1"}}),
    "mounts": (lambda key: {"mounts": [{"destination": key}]}, "/a", {"mounts": [{"destination": "/a", "source": "/b"}]}),
    "env": (lambda key: {"env": [{"key": key}]}, "A", {"env": [{"key": "A", "value": "1"}]}),
    "devices": (lambda key: linux(devices=[{"path": key}]), "/dev/a", linux(devices=[{"path": "/dev/a", "major": "1"}])),
    "sysctl": (lambda key: linux(sysctl={key: ""}), "net.a", linux(sysctl={"net.a": "1"})),
    "net_devices": (lambda key: linux(net_devices={key: {}}), "eth9", linux(net_devices={"eth9": {"name": "net1"}})),
}


def _both(*adjustments: dict[str, Any]) -> dict[str, Any]:
    message = nri.ContainerAdjustment()
    for adjustment in adjustments:
        message.MergeFrom(reply(adjustment).adjust)
    return plain(message)


@pytest.mark.parametrize("kind", sorted(REMOVABLE))
def test_a_later_plugin_may_remove_an_entry_and_set_it_anew(kind: str) -> None:
    make, key, one = REMOVABLE[kind]
    removal = make(f"-{key}")
    first = merged(one)
    first.add("01-p1", reply(removal))
    assert plain(first.adjustment) == plain(reply(removal).adjust)
    assert plain(first.container) == {"id": ID}
    with pytest.raises(Conflict, match="01-p1 and 02-p2"):
        first.add("02-p2", reply(one))

    again = merged(one)
    again.add("01-p1", reply(_both(removal, one)))
    assert plain(again.adjustment) == plain(reply(one).adjust)
    with pytest.raises(Conflict, match="01-p1 and 02-p2"):
        again.add("02-p2", reply(one))


@pytest.mark.parametrize("kind", sorted(REMOVABLE))
def test_an_entry_of_the_container_itself_can_be_removed(kind: str) -> None:
    make, key, one = REMOVABLE[kind]
    before = merged(one).container
    result = merged(make(f"-{key}"), of=before)
    assert plain(result.adjustment) == plain(reply(make(f"-{key}")).adjust)
    assert plain(result.container) == {"id": ID}


def test_variables_replace_in_the_view_and_come_last() -> None:
    result = merged({"env": [{"key": "B", "value": "2"}]}, of=container(env=["A=1", "B=1", "C=1"]))
    assert [*result.container.env] == ["A=1", "C=1", "B=2"]


def test_args_are_replaced_where_the_first_is_empty() -> None:
    result = merged({"args": ["a"]}, {"args": ["", "b", "c"]}, of=container(args=["own"]))
    assert [*result.adjustment.args] == [*result.container.args] == ["b", "c"]
    assert result.owners.owners[ID].simple[nri.Args] == "01-p1"


def test_args_that_are_taken_back_are_the_containers_own() -> None:
    result = merged({"args": ["a"]}, {"args": [""]}, of=container(args=["own"]))
    assert [*result.adjustment.args] == []
    assert [*result.container.args] == ["own"]


def test_hooks_of_all_plugins_run_in_their_order() -> None:
    hook = {"path": "/bin/a"}
    stages = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")
    result = merged({"hooks": {stage: [hook] for stage in stages}}, {"hooks": {"poststop": [{"path": "/bin/b"}]}})
    assert plain(result.adjustment.hooks) == {stage: [hook] for stage in stages} | {"poststop": [hook, {"path": "/bin/b"}]}
    assert result.adjustment.hooks == result.container.hooks
    assert result.owners.owners[ID].simple[nri.OciHooks] == "00-p0,01-p1"


def test_namespaces_that_are_removed_are_gone_from_the_view() -> None:
    own = container(linux={"namespaces": [{"type": "pid"}, {"type": "mount"}]})
    result = merged(linux(namespaces=[{"type": "-pid"}]), of=own)
    assert plain(result.container.linux) == {"namespaces": [{"type": "mount"}]}
    with pytest.raises(Conflict):
        result.add("01-p1", reply(linux(namespaces=[{"type": "pid"}])))


def test_rdt_that_is_removed_can_be_set_anew_by_the_remover() -> None:
    result = merged(
        linux(rdt={"clos_id": value("a"), "schemata": {"value": ["x"]}}), linux(rdt={"remove": True, "clos_id": value("b")})
    )
    assert plain(result.adjustment.linux.rdt) == {"remove": True, "clos_id": value("b")}
    with pytest.raises(Conflict, match="RdtSchemata"):
        result.add("02-p2", reply(linux(rdt={"schemata": {"value": ["y"]}})))


def test_device_rules_add_up() -> None:
    rule = {"allow": True, "type": "c", "major": value("1"), "access": "r"}
    result = merged(resources(devices=[rule]), resources(devices=[rule]))
    assert plain(result.adjustment) == resources(devices=[rule, rule])


def test_zero_is_a_value() -> None:
    result = merged(
        resources(memory={"limit": value("0")}), of=container(linux={"resources": {"memory": {"limit": value("9")}}})
    )
    assert result.adjustment.linux.resources.memory.HasField("limit")
    assert result.container.linux.resources.memory.limit.value == 0


def update(target: str, ignore: bool = False, **fields: Any) -> dict[str, Any]:
    return {"container_id": target, "ignore_failure": ignore, "linux": {"resources": fields}}


def test_updates_of_other_containers_are_merged() -> None:
    result = CreateResult(POD, container())
    result.add("00-a", reply(update=[update("x", ignore=True, cpu={"shares": value("4")}), update("y", cpu={"cpus": "1"})]))
    result.add(
        "01-b", reply(update=[update("x", cpu={"quota": value("5")})], evict=[{"container_id": "z", "reason": "why"}])
    )
    result.add("02-c", reply(evict=[{"container_id": "z", "reason": "other"}, {"container_id": "v"}]))
    assert [plain(u) for u in result.updates] == [
        {"container_id": "x", "linux": {"resources": {"cpu": {"shares": value("4"), "quota": value("5")}}}},
        {"container_id": "y", "linux": {"resources": {"cpu": {"cpus": "1"}}}},
    ]
    assert [plain(e) for e in result.evictions] == [{"container_id": "z", "reason": "why"}, {"container_id": "v"}]
    assert result.owners.owners["x"].simple[nri.CPUQuota] == "01-b"
    with pytest.raises(Conflict, match="00-a and 03-d both set CPUShares of container x"):
        result.add("03-d", reply(update=[update("x", cpu={"shares": value("6")})]))


def test_an_update_that_may_fail_is_left_out_as_a_whole() -> None:
    result = UpdateResult()
    result.add("00-a", nri.UpdateContainerResponse(update=reply(update=[update("x", cpu={"quota": value("4")})]).update))
    may_fail = update("x", ignore=True, cpu={"shares": value("7"), "quota": value("8")})
    result.add("01-b", nri.UpdateContainerResponse(update=reply(update=[may_fail]).update))
    assert [plain(u.linux.resources) for u in result.updates] == [{"cpu": {"quota": value("4")}}]
    assert nri.CPUShares not in result.owners.message.owners["x"].simple, "nothing of it is claimed"


def many(count: int, make: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [make(number) for number in range(count)]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (reply({"rlimits": many(65, lambda n: {"type": f"RLIMIT_{n}"})}), "65 resource limits"),
        (reply(linux(namespaces=many(65, lambda n: {"type": str(n)}))), "65 namespaces"),
        (reply(resources(hugepage_limits=many(65, lambda n: {"page_size": str(n)}))), "65 sizes of huge pages"),
        (reply(update=many(4097, lambda n: update(str(n)))), "4097 updates"),
        (reply(update=many(65, lambda n: update("x", hugepage_limits=[{"page_size": str(n)}]))), "65 sizes of huge pages"),
        (reply(update=many(1025, lambda n: update("x", unified={str(n): ""}))), "1025 files of a control group"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_reply_that_would_hold_up_the_daemon_is_refused(asked: nri.CreateContainerResponse, what: str) -> None:
    with pytest.raises(Conflict, match=f"plugin 00-a names {what}"):
        CreateResult(POD, container()).add("00-a", asked)


@pytest.mark.parametrize("kind", ["update", "evict"])
def test_the_container_that_is_created_cannot_be_updated_or_evicted(kind: str) -> None:
    with pytest.raises(Conflict, match=f"00-a .* {ID} in the answer to its creation"):
        CreateResult(POD, container()).add("00-a", reply(**{kind: [{"container_id": ID}]}))


def test_an_update_is_laid_over_what_was_asked_for() -> None:
    asked = json_format.ParseDict({"memory": {"limit": value("9")}, "cpu": {"shares": value("2")}}, nri.LinuxResources())
    result = UpdateResult(container(), asked)
    answer = reply(update=[update(ID, cpu={"shares": value("4")}, pids={"limit": "7"}), update("x", cpu={"mems": "0"})])
    result.add("00-a", nri.UpdateContainerResponse(update=answer.update, evict=[nri.ContainerEviction(container_id="y")]))
    expected = {"memory": {"limit": value("9")}, "cpu": {"shares": value("4")}, "pids": {"limit": "7"}}
    assert plain(result.resources) == expected
    assert [u.container_id for u in result.updates] == ["x"]
    assert [e.container_id for e in result.evictions] == ["y"]
    assert asked.cpu.shares.value == 2
    with pytest.raises(Conflict, match="both set CPUShares"):
        result.add("01-b", nri.UpdateContainerResponse(update=answer.update[:1]))


def test_plugins_update_others_when_a_container_stops() -> None:
    result = StopResult()
    result.add("00-a", nri.StopContainerResponse(update=reply(update=[update("x", cpu={"cpus": "1"})]).update))
    assert [plain(u) for u in result.updates] == [{"container_id": "x", "linux": {"resources": {"cpu": {"cpus": "1"}}}}]
    assert result.evictions == []


def test_validators_are_told_all() -> None:
    result = merged({"env": [{"key": "A", "value": "1"}]}, of=container(args=["x"]))
    request = result.validation([("p0", "00"), ("q", "01")])
    assert plain(request) == {
        "pod": {"id": "p0"},
        "container": {"id": ID, "args": ["x"]},
        "adjust": {"env": [{"key": "A", "value": "1"}]},
        "owners": {"owners": {ID: {"compound": {str(nri.Env): {"owners": {"A": "00-p0"}}}}}},
        "plugins": [{"name": "p0", "index": "00"}, {"name": "q", "index": "01"}],
    }


@given(messages(nri.Container), st.lists(messages(nri.CreateContainerResponse), max_size=3))
def test_whatever_plugins_answer_is_merged_or_a_conflict(
    own: nri.Container, replies: list[nri.CreateContainerResponse]
) -> None:
    before = [answer.SerializeToString(deterministic=True) for answer in (own, *replies)]
    result = CreateResult(POD, own)
    try:
        for index, answer in enumerate(replies):
            result.add(f"{index:02}-p", answer)
    except Conflict:
        pass
    result.request().SerializeToString()
    result.validation([("p", "00")]).SerializeToString()
    assert [answer.SerializeToString(deterministic=True) for answer in (own, *replies)] == before, (
        "nothing is changed in place"
    )


@pytest.mark.parametrize("leaf", filled(nri.ContainerAdjustment), ids=lambda leaf: leaf[0])
def test_no_field_of_an_adjustment_is_lost(leaf: tuple[str, nri.ContainerAdjustment]) -> None:
    """The protocol's own description is walked: a field that it gets one day, and that merging does not know, fails here."""
    result = CreateResult(POD, container())
    result.add("00-p", nri.CreateContainerResponse(adjust=leaf[1]))
    assert plain(result.adjustment) == plain(leaf[1])
    assert result.owners.owners or leaf[0].startswith(UNOWNED)


@pytest.mark.parametrize("leaf", filled(nri.LinuxResources), ids=lambda leaf: leaf[0])
def test_no_field_of_an_update_is_lost_but_device_rules(leaf: tuple[str, nri.LinuxResources]) -> None:
    result = UpdateResult()
    asked = nri.ContainerUpdate(container_id="x", linux=nri.LinuxContainerUpdate(resources=leaf[1]))
    result.add("00-p", nri.UpdateContainerResponse(update=[asked]))
    assert (plain(result.updates[0]) == plain(asked)) != leaf[0].startswith("devices")


@st.composite
def disjoint(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(sorted(ONE_OWNER)), unique=True, min_size=2, max_size=6))
    return [ONE_OWNER[name][0] for name in names]


@given(disjoint())
def test_plugins_that_set_different_things_may_come_in_any_order(adjustments: list[dict[str, Any]]) -> None:
    forth, back = merged(*adjustments), merged(*reversed(adjustments))
    assert forth.adjustment == back.adjustment
    assert forth.container == back.container
