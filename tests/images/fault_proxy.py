"""A proxy in front of a registry that spoils replies: what each rule does is applied to the requests that it matches."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from aiohttp import ClientSession, web


@dataclass
class Rule:
    """Applied to requests whose "METHOD path" matches, `times` times, after letting `skip` of them through."""

    pattern: str
    times: int = 1_000_000
    status: int = 0
    """Answer this instead of asking the registry."""
    cut_after: int = -1
    """Send so many bytes of the body, then close the connection."""
    corrupt: bool = False
    """Flip bits in the middle of the body."""
    stall: asyncio.Event | None = None
    """Send half of the body, then wait for this."""
    replace: tuple[bytes, bytes] | None = None
    """Put one text in place of another in the body, of the same length."""
    redirect: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class FaultProxy:
    """`async with FaultProxy(registry.host) as proxy: proxy.rules.append(...)`; `requests` lists what came."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.host = ""
        self.reached = asyncio.Event()
        """Set when a rule has stalled a reply."""

    async def __aenter__(self) -> FaultProxy:
        self._session = ClientSession(auto_decompress=False)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.host = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _headers in self.requests)

    def _rule(self, request: web.Request) -> Rule | None:
        for rule in self.rules:
            if rule.times > 0 and re.search(rule.pattern, f"{request.method} {request.path}"):
                rule.times -= 1
                return rule
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.headers)))
        rule = self._rule(request) or Rule("")
        if rule.redirect:
            return web.Response(status=307, headers={"Location": rule.redirect})
        if rule.status:
            return web.Response(status=rule.status, headers=rule.headers, text="<html>broken</html>")
        headers = {
            k: v for k, v in request.headers.items() if k.lower() not in ("host", "accept-encoding", "content-length")
        }
        url = f"http://{self._upstream}{request.path_qs}"
        sent = await request.read()
        async with self._session.request(
            request.method, url, headers=headers, data=sent or None, allow_redirects=False
        ) as upstream:
            body = await upstream.read()
            reply = web.StreamResponse(status=upstream.status)
            for name, value in upstream.headers.items():
                if name.lower() not in ("transfer-encoding", "date"):
                    reply.headers[name] = value
            await reply.prepare(request)
            if request.method != "HEAD":
                await self._send(request, reply, body, rule)
            return reply

    async def _send(self, request: web.Request, reply: web.StreamResponse, body: bytes, rule: Rule) -> None:
        if rule.corrupt:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        if rule.replace is not None:
            assert rule.replace[0] in body
            body = body.replace(*rule.replace)
        if rule.stall is not None:
            await reply.write(body[: len(body) // 2])
            self.reached.set()
            await rule.stall.wait()
            body = body[len(body) // 2 :]
        if 0 <= rule.cut_after < len(body):
            await reply.write(body[: rule.cut_after])
            assert request.transport is not None
            request.transport.close()
            return
        await reply.write(body)
