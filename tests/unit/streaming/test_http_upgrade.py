from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.streaming.http_upgrade import (
    MAX_REQUEST_BYTES,
    Rejection,
    Upgrade,
    UpgradeDecoder,
    UpgradeRequest,
    negotiate,
    switch_to_spdy,
)

# As crictl sends it, Go's header order and all.
CRICTL = (
    b"POST /exec/abc HTTP/1.1\r\nHost: 127.0.0.1:4001\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n"
    b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
)


def request(text: str) -> UpgradeRequest | Rejection | None:
    return UpgradeDecoder().receive_data(text.replace("\n", "\r\n").encode())


def understood(data: bytes) -> UpgradeRequest:
    result = UpgradeDecoder().receive_data(data)
    assert isinstance(result, UpgradeRequest)
    return result


def test_crictls_request() -> None:
    result = understood(CRICTL + b"\x80\x03rest")
    assert (result.verb, result.token, result.upgrade) == ("exec", "abc", Upgrade.SPDY)
    assert result.protocols == ("v5.channel.k8s.io", "v4.channel.k8s.io")
    assert result.rest == b"\x80\x03rest"


def test_byte_by_byte() -> None:
    decoder = UpgradeDecoder()
    results = [decoder.receive_data(CRICTL[at : at + 1]) for at in range(len(CRICTL))]
    assert results[:-1] == [None] * (len(CRICTL) - 1)
    assert isinstance(results[-1], UpgradeRequest)


def test_a_websocket_request() -> None:
    result = request(
        "GET /attach/t HTTP/1.1\nHost: x\nConnection: keep-alive, upgrade\nUpgrade: WebSocket\n"
        "Sec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\n\n"
    )
    assert isinstance(result, UpgradeRequest)
    assert (result.verb, result.upgrade) == ("attach", Upgrade.WEBSOCKET)
    assert result.protocols == ("v5.channel.k8s.io", "v4.channel.k8s.io")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("PUT /exec/t HTTP/1.1\nHost: x\n\n", HTTPStatus.METHOD_NOT_ALLOWED),
        ("GET / HTTP/1.1\nHost: x\n\n", HTTPStatus.NOT_FOUND),
        ("GET /exec/a/b HTTP/1.1\nHost: x\n\n", HTTPStatus.NOT_FOUND),
        ("GET /metrics/t HTTP/1.1\nHost: x\n\n", HTTPStatus.NOT_FOUND),
        ("GET /exec/t HTTP/1.1\nHost: x\n\n", HTTPStatus.BAD_REQUEST),
        ("GET /exec/t HTTP/1.1\nHost: x\nUpgrade: SPDY/3.1\n\n", HTTPStatus.BAD_REQUEST),
        ("GET /exec/t HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: h2c\n\n", HTTPStatus.BAD_REQUEST),
        ("POST /exec/t HTTP/1.1\nHost: x\nContent-Length: 2\n\nhi", HTTPStatus.BAD_REQUEST),
        ("GET /exec/t HTTP/1.1\n\n", HTTPStatus.BAD_REQUEST),
        ("nonsense\n\n", HTTPStatus.BAD_REQUEST),
        ("GET /exec/t HTTP/1.1\nHost: x\nA: " + "x" * MAX_REQUEST_BYTES, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    ],
)
def test_refusals(text: str, status: HTTPStatus) -> None:
    result = request(text)
    assert isinstance(result, Rejection)
    assert result.status is status
    head, _, body = result.encode().partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status.value} ".encode())
    assert f"Content-Length: {len(body)}".encode() in head


def test_negotiation_prefers_the_clients_order() -> None:
    assert negotiate(understood(CRICTL), ("v4.channel.k8s.io", "v3.channel.k8s.io")) == "v4.channel.k8s.io"
    refusal = negotiate(understood(CRICTL), ("v2.channel.k8s.io",))
    assert isinstance(refusal, Rejection)
    assert refusal.status is HTTPStatus.FORBIDDEN
    assert b"X-Accepted-Stream-Protocol-Versions: v2.channel.k8s.io" in refusal.encode()


def test_a_websocket_client_may_name_no_protocol() -> None:
    bare = request("GET /exec/t HTTP/1.1\nHost: x\nConnection: upgrade\nUpgrade: websocket\n\n")
    assert isinstance(bare, UpgradeRequest)
    assert negotiate(bare, ("v5.channel.k8s.io", "")) == ""


def test_the_answer_that_switches() -> None:
    assert switch_to_spdy("v4.channel.k8s.io").split(b"\r\n") == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Connection: Upgrade",
        b"Upgrade: SPDY/3.1",
        b"X-Stream-Protocol-Version: v4.channel.k8s.io",
        b"",
        b"",
    ]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes_are_understood_or_refused(chunks: list[bytes]) -> None:
    decoder = UpgradeDecoder()
    for chunk in chunks:
        if decoder.receive_data(chunk) is not None:
            return
