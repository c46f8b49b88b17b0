"""ulimits: the notation, who may ask for what, and what the host caps."""

from __future__ import annotations

import resource

import pytest

from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.config.settings import ContainersConfig
from runtime.config.ulimits import UNLIMITED, Ulimit
from runtime.oci import ulimits
from tests.unit.test_oci_spec import host


def container(name: str, **annotations: str) -> cri.ContainerConfig:
    own = {key.replace("_", "."): text for key, text in annotations.items()}
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name), annotations=own)


def test_annotation() -> None:
    annotations = {"io.crisp.ulimits/c": " nofile=64:128, MEMLOCK=unlimited,core=-1:-1,RLIMIT_NPROC=5"}
    assert ulimits.of_annotations(annotations, container("c")) == {
        "nofile": Ulimit(64, 128),
        "memlock": Ulimit(UNLIMITED, UNLIMITED),
        "core": Ulimit(UNLIMITED, UNLIMITED),
        "nproc": Ulimit(5, 5),
    }
    assert ulimits.of_annotations(annotations, container("other")) == {}
    own = container("c", io_crisp_ulimits="core=1")
    assert ulimits.of_annotations(annotations, own) == {"core": Ulimit(1, 1)}


@pytest.mark.parametrize(
    "text", ["nofile", "nofile=", "nofile=a", "nofile=9:8", "fly=1", "rtprio=9", "nice=1", "nofile=1:2:3"]
)
def test_bad_annotations(text: str) -> None:
    with pytest.raises(CrispError, match=r"io\.crisp\.ulimits/c"):
        ulimits.of_annotations({"io.crisp.ulimits/c": text}, container("c"))


def test_annotation_before_configuration_before_default() -> None:
    defaults = ContainersConfig(ulimits=("nofile=10:20", "rtprio=3", "core=0"))
    able = host(capabilities=frozenset({"CAP_SYS_RESOURCE"}), nofile_limit=1000)
    found = {limit["type"]: (limit["soft"], limit["hard"]) for limit in ulimits.build(defaults.limits(), {}, able)}
    assert found == {"RLIMIT_NOFILE": (10, 20), "RLIMIT_RTPRIO": (3, 3), "RLIMIT_CORE": (0, 0)}
    asked = {"nofile": Ulimit(5, 5000), "memlock": Ulimit(1, UNLIMITED)}
    found = {limit["type"]: (limit["soft"], limit["hard"]) for limit in ulimits.build(defaults.limits(), asked, able)}
    assert found["RLIMIT_NOFILE"] == (5, 1000)
    assert found["RLIMIT_MEMLOCK"] == (1, UNLIMITED)


def test_without_the_right_to_raise_nothing_goes_above_the_daemons_own() -> None:
    own = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    found = {x["type"]: x for x in ulimits.build(ContainersConfig().limits(), {"memlock": Ulimit(1, UNLIMITED)}, host())}
    assert found["RLIMIT_MEMLOCK"]["hard"] == (UNLIMITED if own == resource.RLIM_INFINITY else own)
