"""runtime/telemetry/http_answers.py"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from proto.errors import Code, CrispError
from runtime.telemetry.http_answers import MISSING, Answer, HttpAnswers


async def answer(path: str) -> Answer:
    if path == "/bug":
        raise ZeroDivisionError
    return Answer(b"hello", "text/plain") if path == "/hello" else MISSING


@pytest_asyncio.fixture
async def server() -> AsyncIterator[HttpAnswers]:
    serving = HttpAnswers(answer)
    await serving.listen_tcp("127.0.0.1:0")
    yield serving
    await serving.stop()


async def ask(server: HttpAnswers, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    if not request:
        writer.write_eof()
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /hello?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n", b"500"),
    ],
)
async def test_answers(server: HttpAnswers, request_: bytes, status: bytes) -> None:
    reply = await ask(server, request_)
    assert reply.split()[1] == status
    assert reply.endswith(b"\r\n\r\nhello") == (status == b"200")


@pytest.mark.parametrize("request_", [b"", b"nonsense\r\n\r\n", b"GET /" + b"x" * 100_000])
async def test_what_is_no_request_gets_no_answer(server: HttpAnswers, request_: bytes) -> None:
    try:
        assert await ask(server, request_) == b""
    except ConnectionError:
        pass  # reset, for there was more to read
    assert (await ask(server, b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(b"hello")


@pytest.mark.parametrize(("address", "code"), [("nonsense", Code.INVALID_ARGUMENT), ("192.0.2.1:1", Code.UNAVAILABLE)])
async def test_addresses(address: str, code: Code) -> None:
    with pytest.raises(CrispError) as caught:
        await HttpAnswers(answer).listen_tcp(address)
    assert caught.value.code is code
