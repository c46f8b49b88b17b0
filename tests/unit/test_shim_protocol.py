"""proto/shim_protocol.py: good requests survive, bad ones are answered and never raise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import MAX_DATAGRAM, Malformed, Request


def test_round_trip() -> None:
    datagram = shim_protocol.request("signal", 7, {"signal": 15})
    assert shim_protocol.decode_request(datagram) == Request("signal", 7, {"signal": 15})


def test_flag_of_an_absent_field_is_false() -> None:
    found = shim_protocol.decode_request(shim_protocol.request("exec", 1, {"tty": True}))
    assert isinstance(found, Request)
    assert found.flag("tty")
    assert not found.flag("stdin")


def test_names_that_are_not_utf8_survive() -> None:
    path = b"/var/log/\xff".decode(errors="surrogateescape")
    found = shim_protocol.decode_request(shim_protocol.request("start", 1, {"log_path": path}))
    assert isinstance(found, Request)
    assert found.fields["log_path"] == path


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"op": "signal", "signal": 1}, "no number"),
        ({"seq": 3, "op": "dance"}, "unknown operation 'dance'"),
        ({"seq": 3, "op": ["signal"]}, "unknown operation"),
        ({"seq": 3, "op": "signal"}, "signal needs signal"),
        ({"seq": 3, "op": "signal", "signal": "TERM"}, "wrong type"),
        ({"seq": 3, "op": "kill", "hard": True}, "kill has no field 'hard'"),
    ],
)
def test_malformed(message: object, complaint: str) -> None:
    found = shim_protocol.decode_request(json.dumps(message).encode())
    assert isinstance(found, Malformed)
    assert complaint in found.message


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(datagram: bytes) -> None:
    assert isinstance(shim_protocol.decode_request(datagram), Malformed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["op", "seq", "signal", "tty", "rootfs"]) | st.text(max_size=4), json_values))
def test_any_object_is_answered(message: dict[str, object]) -> None:
    assert isinstance(shim_protocol.decode_request(shim_protocol.encode(message)), Request | Malformed)


def test_errors_travel() -> None:
    message = shim_protocol.decode(shim_protocol.failure(4, Code.NOT_FOUND, "no such thing"))
    assert message is not None
    error = shim_protocol.error_from(message["error"])
    assert (error.code, error.message) == (Code.NOT_FOUND, "no such thing")


@given(st.text(max_size=40000))
def test_error_fits_a_datagram(text: str) -> None:
    assert len(shim_protocol.failure(1, Code.INTERNAL, text)) <= MAX_DATAGRAM


@pytest.mark.parametrize("fields", [None, [], {}, {"code": "NO_SUCH_CODE"}])
def test_unknown_error_is_internal(fields: object) -> None:
    assert shim_protocol.error_from(fields).code is Code.INTERNAL


def test_an_older_shim_is_spoken_to_in_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim_protocol, "VERSION", 3)
    monkeypatch.setattr(shim_protocol, "SINCE", {"kill": 2, "signal.everyone": 3})
    said = shim_protocol.decode(shim_protocol.request("signal", 1, {"signal": 15, "everyone": False}, 2))
    assert said == {"op": "signal", "seq": 1, "signal": 15}
    said = shim_protocol.decode(shim_protocol.request("signal", 1, {"signal": 15, "everyone": True}, 3))
    assert said == {"op": "signal", "seq": 1, "signal": 15, "everyone": True}
    with pytest.raises(CrispError, match=r"signal with everyone: an older crisp"):
        shim_protocol.request("signal", 1, {"signal": 15, "everyone": True}, 2)
    with pytest.raises(CrispError, match=r"^kill: an older crisp") as caught:
        shim_protocol.request("kill", 1, {}, 1)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_a_shim_of_a_version_that_is_not_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim_protocol, "VERSION", 4)
    monkeypatch.setattr(shim_protocol, "OLDEST", 2)
    assert [shim_protocol.check_version(version) for version in (2, 3, 4)] == [2, 3, 4]
    for version in (1, 5, None):
        with pytest.raises(CrispError, match=f"speaks version {version} and this crisp 2 to 4"):
            shim_protocol.check_version(version)


def test_newer_operations_and_fields_are_real_and_newer() -> None:
    for name, version in shim_protocol.SINCE.items():
        operation, _, field = name.partition(".")
        assert operation in shim_protocol.OPS
        assert not field or field in shim_protocol.OPS[operation]
        assert shim_protocol.OLDEST < version <= shim_protocol.VERSION
