from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import CrispError
from runtime.network.cni.network_list import NetworkList, parse, parse_plugin

PLUGIN = {"type": "bridge"}


def conflist(**more: Any) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [PLUGIN], **more})


def test_a_list() -> None:
    network = parse(conflist(disableCheck=True, plugins=[PLUGIN, {"type": "portmap", "x": 1}]), single=False)
    assert (network.name, network.version) == ("net", "1.0.0")
    assert [plugin["type"] for plugin in network.plugins] == ["bridge", "portmap"]
    assert (network.disable_check, network.disable_gc, network.inlined_only) == (True, False, False)
    assert NetworkList.restore(json.loads(json.dumps(network.document()))) == network


def test_a_single_plugin() -> None:
    network = parse('{"cniVersion": "0.3.1", "name": "net", "type": "ptp", "mtu": 9000}', single=True)
    assert network.plugins == ({"cniVersion": "0.3.1", "name": "net", "type": "ptp", "mtu": 9000},)
    assert not network.at_least("0.4.0")


def test_a_list_in_a_file_for_single_plugins() -> None:
    assert parse(conflist(), single=True).plugins == (PLUGIN,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        (conflist(name=None), "name: missing"),
        (conflist(name="a/b"), "name: 'a/b' is not made of"),
        (conflist(cniVersion=None), "cniVersion: missing"),
        (conflist(cniVersion="0.2.0"), "cniVersion: 0.2.0 is none of 0.3.0"),
        (conflist(cniVersions="1.0.0"), "cniVersions: not a list"),
        (conflist(plugins=[]), "plugins: missing"),
        (conflist(plugins={}), "plugins: missing"),
        (conflist(plugins=["bridge"]), "an entry is not an object"),
        (conflist(plugins=[{}]), "an entry lacks its type"),
        (conflist(plugins=[{"type": "../sh"}]), "is not the name of a program"),
        (conflist(plugins=[{"type": "a", "capabilities": ["portMappings"]}]), "capabilities is not an object"),
        (conflist(disableCheck="perhaps"), "disableCheck: neither true nor false"),
    ],
)
def test_bad_lists(text: str, message: str) -> None:
    with pytest.raises(CrispError) as caught:
        parse(text, single=False)
    assert message in caught.value.message


def test_the_old_way_to_write_a_flag() -> None:
    assert parse(conflist(disableCheck="true"), single=False).disable_check


def test_the_best_version_that_all_plugins_have() -> None:
    network = parse(conflist(cniVersion="0.4.0", cniVersions=["1.0.0", "1.1.0", "9.0.0"]), single=False)
    assert network.versions == ("1.1.0", "1.0.0", "0.4.0")
    assert network.speaking([{"0.4.0", "1.0.0", "1.1.0"}]).version == "1.1.0"
    assert network.speaking([{"0.4.0", "1.0.0"}]).version == "1.0.0"
    with pytest.raises(CrispError, match=r"plugin bridge supports protocol versions up to 0\.3\.1"):
        network.speaking([{"0.3.1", "0.2.0"}])
    two = network.with_plugins([parse_plugin('{"type": "tuning"}')])
    with pytest.raises(CrispError, match="suits all its plugins"):
        two.speaking([{"1.1.0"}, {"0.4.0"}])


KEYS = ("cniVersion", "cniVersions", "name", "plugins", "type", "capabilities", "disableCheck", "disableGC")
KEY = st.sampled_from(KEYS) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["1.0.0", "net"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_whatever_is_written_is_read_or_refused(document: Any, single: bool) -> None:
    try:
        network = parse(json.dumps(document), single=single)
    except CrispError:
        return
    assert network.plugins
    assert NetworkList.restore(network.document()).name == network.name
