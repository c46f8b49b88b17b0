"""CDI: names, specification files, which file counts, and what is done to the OCI configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.oci import cdi, cdi_spec

NULL = {"path": "/dev/gpu0", "hostPath": "/dev/null"}


def document(edits: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    device = {"name": "0", "containerEdits": {"env": ["GPU=0"]} if edits is None else edits}
    return {"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [device]} | changes


def container() -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "GPU=none"]},
        "mounts": [{"destination": "/proc"}, {"destination": "/usr/lib/deep"}],
        "linux": {"devices": [], "resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }


def applied(edits: dict[str, Any], common: dict[str, Any] | None = None, owner: int = 0) -> dict[str, Any]:
    file = cdi_spec.parse(document(edits, containerEdits=common or {}), "f")
    spec = container()
    cdi.apply(spec, [file.edits, file.devices["0"]], owner)
    return spec


def test_names_of_field_and_annotations_each_once() -> None:
    config = cri.ContainerConfig(CDI_devices=[cri.CDIDevice(name="example.com/gpu=0")])
    config.annotations["cdi.k8s.io/plugin_gpu"] = "example.com/gpu=0,example.com/gpu=1"
    config.annotations["other"] = "not a name"
    assert cdi.requested(config) == ["example.com/gpu=0", "example.com/gpu=1"]


@pytest.mark.parametrize("name", ["gpu0", "example.com/gpu", "example.com/gpu=", "=0", "a b/c=d", "example.com/gpu=../x"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(CrispError, match="VENDOR/CLASS=NAME"):
        cdi.requested(cri.ContainerConfig(CDI_devices=[cri.CDIDevice(name=name)]))


def test_edits() -> None:
    spec = applied(
        {
            "env": ["GPU=0", "EXTRA=1=2"],
            "deviceNodes": [{**NULL, "permissions": "rw"}, {"path": "/dev/made", "type": "c", "major": 240, "minor": 7}],
            "mounts": [
                {"hostPath": "/lib/a.so", "containerPath": "/usr/lib/a.so", "options": ["ro", "nosuid", "bind"]},
                {"hostPath": "/lib", "containerPath": "/l"},
            ],
            "hooks": [{"hookName": "createContainer", "path": "/bin/ldconfig", "args": ["ldconfig"], "timeout": 3}],
            "additionalGids": [44, 0, 44],
            "intelRdt": {"closID": "fast"},
        },
        {"env": ["DRIVER=1"], "mounts": [{"hostPath": "/old", "containerPath": "/l", "options": ["bind"]}]},
        owner=1000,
    )
    assert spec["process"]["env"] == ["PATH=/bin", "GPU=0", "DRIVER=1", "EXTRA=1=2"]
    assert spec["linux"]["devices"][0] | {"fileMode": 0} == {
        "path": "/dev/gpu0",
        "type": "c",
        "major": 1,
        "minor": 3,
        "uid": 1000,
        "gid": 0,
        "fileMode": 0,
    }
    assert spec["linux"]["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "c", "major": 240, "minor": 7, "access": "rwm"},
    ]
    mounted = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounted["/l"] == {"destination": "/l", "type": "bind", "source": "/lib", "options": ["rbind"]}
    assert mounted["/usr/lib/a.so"]["options"] == ["ro", "nosuid", "bind"]
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/ldconfig", "args": ["ldconfig"], "timeout": 3}]}
    assert spec["process"]["user"] == {"additionalGids": [44]}
    assert spec["linux"]["intelRdt"] == {"closID": "fast"}


def test_a_device_node_that_the_host_lacks() -> None:
    with pytest.raises(CrispError, match="/dev/nope: No such file"):
        applied({"deviceNodes": [{"path": "/dev/nope"}]})
    with pytest.raises(CrispError, match="not of the type"):
        applied({"deviceNodes": [{"path": "/etc/passwd"}]})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (document(cdiVersion="9.0"), "cdiVersion"),
        (document(kind="gpu"), "VENDOR/CLASS"),
        (document(devices=[]), "devices is empty"),
        (document(devices="x"), "devices must be an array"),
        (document(typo=1), "unknown typo"),
        (document({"env": ["NOVALUE"]}), r"devices\[0\]: containerEdits: env"),
        (document({"deviceNodes": [{"path": "relative"}]}), "absolute"),
        (document({"deviceNodes": [{**NULL, "permissions": "x"}]}), "permissions"),
        (document({"hooks": [{"hookName": "never", "path": "/x"}]}), "hookName"),
        (document({"hooks": [{"hookName": "prestart", "path": "x"}]}), "not absolute"),
        (document({"mounts": [{"hostPath": "/x"}]}), "containerPath is missing"),
        (document({"netDevices": [{"hostInterfaceName": "eth1", "name": "eth1"}]}), "netDevices"),
        (document({"additionalGids": [-1]}), "additionalGids"),
        ([], "must be an object"),
    ],
)
def test_broken_files_say_where(broken: Any, message: str) -> None:
    with pytest.raises(CrispError, match=message):
        cdi_spec.parse(broken, "/etc/cdi/x.json")


def write(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)


def test_later_directories_hide_earlier_ones_and_clashes_are_errors(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    directories = [low, high, tmp_path / "missing"]
    write(low, "a.json", json.dumps(document({"env": ["FROM=low"]})))
    write(low, "ignored.txt", "x")
    [_, edits] = cdi.find(directories, ["example.com/gpu=0"])
    assert edits.env == ("FROM=low",)
    write(
        high,
        "a.yaml",
        "cdiVersion: 0.6.0\nkind: example.com/gpu\ncontainerEdits: {env: [A=1]}\ndevices:\n"
        '- {name: "0", containerEdits: {env: [FROM=high]}}\n- {name: "1", containerEdits: {env: [B=1]}}\n',
    )
    found = cdi.find(directories, ["example.com/gpu=0", "example.com/gpu=1"])
    assert [edits.env for edits in found] == [("A=1",), ("FROM=high",), ("B=1",)]
    write(high, "b.json", json.dumps(document()))
    with pytest.raises(CrispError, match=r"defined by both .*a\.yaml and .*b\.json"):
        cdi.find(directories, ["example.com/gpu=0"])


def test_an_unknown_device_names_directories_and_broken_files(tmp_path: Path) -> None:
    write(tmp_path, "bad.json", "{")
    write(tmp_path, "bad.yaml", "a: [")
    with pytest.raises(CrispError, match=r"example.com/gpu=7 is not defined.*bad\.json is not JSON.*bad\.yaml is not YAML"):
        cdi.find([tmp_path], ["example.com/gpu=7"])
