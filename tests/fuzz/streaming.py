"""Fuzz targets of the streaming codecs: whatever comes in, they answer with events, never with an exception.

python -m tests.fuzz.streaming spdy [SECONDS]       with atheris where it is installed (endless, coverage-guided),
                                                    else with random mutations of well-formed input
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

from runtime.streaming import spdy, websocket
from runtime.streaming.http_upgrade import UpgradeDecoder, UpgradeRequest, negotiate
from runtime.streaming.remote_command import ResizeDecoder
from runtime.streaming.spdy import SpdyConnection, StreamOpened

HANDSHAKE = [
    (b"host", b"x"),
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
]


def fuzz_spdy(data: bytes) -> None:
    """A server that agrees to every other stream and answers on it; the input is cut by its first byte."""
    server, step = SpdyConnection(is_server=True), (data[0] if data else 0) + 1
    for at in range(1, len(data), step):
        for event in server.receive_data(data[at : at + step]):
            if isinstance(event, StreamOpened) and event.stream % 4 == 1:
                server.reply(event.stream)
                server.send(event.stream, b"answer", end=event.stream % 8 == 1)
            elif isinstance(event, spdy.DataReceived):
                server.consumed(event.stream, len(event.data))
        assert len(server.data_to_send()) <= 64 * (step + 16)


def fuzz_websocket(data: bytes) -> None:
    """All subprotocols, chosen by the first byte."""
    protocols = (websocket.V5, websocket.V4, websocket.V4_BASE64, "SPDY/3.1+portforward.k8s.io")
    protocol = protocols[(data[0] if data else 0) % len(protocols)]
    codec = websocket.ChannelConnection(protocol)
    assert codec.accept([*HANDSHAKE, (b"sec-websocket-protocol", protocol.encode())], "/exec/t") is None
    for at in range(1, len(data), 16):
        for event in codec.receive_data(data[at : at + 16]):
            if isinstance(event, websocket.ChannelData):
                codec.send(1, event.data)
    codec.close()
    codec.data_to_send()


def fuzz_http(data: bytes) -> None:
    """The request."""
    result = UpgradeDecoder().receive_data(data)
    if isinstance(result, UpgradeRequest):
        outcome = negotiate(result, (websocket.V5, ""))
        if result.upgrade.value == "websocket" and isinstance(outcome, str):
            websocket.ChannelConnection(outcome).accept(result.headers, result.path)
    elif result is not None:
        result.encode()


def fuzz_resize(data: bytes) -> None:
    """The resize stream."""
    decoder = ResizeDecoder()
    for at in range(0, len(data), 7):
        for width, height in decoder.receive_data(data[at : at + 7]):
            assert 0 < width < 65536 and 0 < height < 65536


TARGETS: dict[str, Callable[[bytes], None]] = {
    "spdy": fuzz_spdy,
    "websocket": fuzz_websocket,
    "http": fuzz_http,
    "resize": fuzz_resize,
}


def seed(target: str) -> bytes:
    """Well-formed input to begin from."""
    if target == "spdy":
        client = SpdyConnection(is_server=False)
        for kind in ("error", "stdin", "stdout"):
            client.open({"streamtype": kind})
        client.ping()
        client.send(3, b"input", end=True)
        client.reset(5)
        client.go_away()
        return b"\xff" + client.data_to_send()
    if target == "http":
        return (
            b"GET /exec/t HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
        )
    if target == "websocket":
        return b"\0" + b"\x82\x87\0\0\0\0\0hello\n" + b"\x82\x82\0\0\0\0\xff\0" + b"\x89\x80\0\0\0\0" + b"\x88\x80\0\0\0\0"
    return b'{"Width":80,"Height":24}\n' * 2


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change, remove, double or insert some bytes."""
    mutable = bytearray(data)
    for _ in range(source.randint(1, 8)):
        at = source.randrange(len(mutable) + 1)
        length = source.randint(1, 8)
        match source.randrange(4):
            case 0:
                mutable[at : at + length] = source.randbytes(length)
            case 1:
                del mutable[at : at + length]
            case 2:
                mutable[at:at] = mutable[at : at + length]
            case _:
                mutable[at:at] = source.randbytes(length)
    return bytes(mutable)


def main() -> None:
    """Fuzz one target."""
    name, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    try:
        import atheris  # type: ignore[import-not-found]  # noqa: PLC0415
    except ImportError:
        source, end, rounds = random.Random(time.time_ns()), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            data = mutate(seed(name), source)
            try:
                TARGETS[name](data)
            except Exception:
                print("failing input:", data.hex())
                raise
            rounds += 1
        print(f"{name}: {rounds} inputs in {seconds:g} s")
    else:
        atheris.Setup([sys.argv[0]], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
