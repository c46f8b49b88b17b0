from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.network.cni import protocol
from runtime.network.cni.network_list import parse

NETWORK = parse('{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "p"}]}', single=False)
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "00:00:00:00:00:01"},
        {"name": "veth1"},
        {"name": "eth0", "sandbox": "/run/netns/a"},
        {"name": "eth9", "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"address": "10.0.0.2/24", "interface": 2},
        {"address": "10.0.0.1/24", "interface": 0},
        {"address": "fd00::2/64", "interface": 2, "gateway": "fd00::1"},
        {"address": "10.9.0.2/24", "interface": 3},
        {"address": "10.8.0.2/24"},
    ],
}


def test_a_configuration_is_the_plugins_with_what_the_runtime_adds() -> None:
    plugin = {
        "type": "portmap",
        "cniVersion": "0.1.0",
        "name": "other",
        "snat": True,
        "capabilities": {"portMappings": True, "mac": False, "unknown": True},
        "runtimeConfig": {"forged": True},
    }
    told = {"portMappings": [1], "mac": "x", "dns": {}}
    document = protocol.configuration(NETWORK, plugin, capabilities=told, previous=RESULT)
    assert document == {
        "type": "portmap",
        "cniVersion": "1.1.0",
        "name": "net",
        "snat": True,
        "runtimeConfig": {"portMappings": [1]},
        "prevResult": RESULT,
    }


def test_garbage_collection_lists_attachments() -> None:
    document = protocol.configuration(NETWORK, {"type": "p"}, attachments=[("id", "eth0")])
    assert document["cni.dev/valid-attachments"] == [{"containerID": "id", "ifname": "eth0"}]


def test_environment() -> None:
    target = protocol.Target("id", "/ns", "eth0", "A=1;B=2")
    assert protocol.environment("ADD", (Path("/a"), Path("/b")), target) == {
        "CNI_COMMAND": "ADD",
        "CNI_PATH": "/a:/b",
        "CNI_CONTAINERID": "id",
        "CNI_NETNS": "/ns",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=2",
    }
    assert protocol.environment("STATUS", (Path("/a"),)) == {"CNI_COMMAND": "STATUS", "CNI_PATH": "/a"}


def test_a_pods_addresses_are_those_of_its_interface() -> None:
    assert protocol.addresses(RESULT, "eth0") == ("10.0.0.2", "fd00::2", "10.8.0.2")
    assert protocol.addresses(RESULT, "eth9") == ("10.9.0.2", "10.8.0.2")
    assert protocol.addresses({}, "eth0") == ()
    old = {"ips": [{"version": "4", "address": "10.0.0.2/24", "interface": -1}], "interfaces": None}
    assert protocol.addresses(old, "eth0") == ("10.0.0.2",)


def test_a_result_gets_the_version_it_was_asked_for_in() -> None:
    assert protocol.result(NETWORK, "p", b'{"ips": []}') == {"ips": [], "cniVersion": "1.1.0"}


def test_long_errors_are_cut() -> None:
    error = protocol.failure("net", "p", "ADD", 1, b"x" * 100_000, b"")
    assert len(error.message) < protocol.MAX_MESSAGE + 100
    assert error.message.endswith("(cut)")


def test_errors_on_both_streams() -> None:
    document = json.dumps({"cniVersion": "1.0.0", "code": 999, "msg": "no", "details": "because"}).encode()
    error = protocol.failure("net", "p", "DEL", 1, document, b"level=error trace")
    assert (
        error.message == "network net: plugin p failed at DEL: no: because (code 999); on standard error: level=error trace"
    )
    assert error.code is Code.INTERNAL


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"supportedVersions": 1}', b"\xff"])
def test_no_answer_to_version(answer: bytes) -> None:
    assert protocol.supported_versions(answer) == set()


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_any_bytes_are_a_result_or_an_error(output: bytes, errors: bytes) -> None:
    assert protocol.failure("n", "p", "ADD", 1, output, errors).message
    protocol.supported_versions(output)
    try:
        protocol.result(NETWORK, "p", output)
    except CrispError:
        pass


SHAPES: Any = st.recursive(
    st.none() | st.integers(-3, 9) | st.sampled_from(["10.0.0.2/24", "eth0", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ips", "interfaces", "interface", "address", "name", "sandbox"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(["ips", "interfaces", "dns"]), SHAPES, max_size=3))
def test_any_shape_is_a_result_or_an_error(document: dict[str, Any]) -> None:
    try:
        found = protocol.result(NETWORK, "p", json.dumps(document).encode())
    except CrispError:
        return
    protocol.addresses(found, "eth0")
