"""A registry front that asks for bearer tokens, and the token server beside it: distribution's token protocol."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

from aiohttp import ClientSession, web


class TokenFront:
    """Checks tokens in front of an open registry. `grants` maps (user, password) to repository prefixes; None is anonymous.

    `refresh` maps OAuth2 refresh tokens to users. `seen` keeps what the token endpoint was asked, `leaked` any request to
    the blob redirect target that carried an Authorization header.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.grants: dict[tuple[str, str] | None, tuple[str, ...]] = {}
        self.refresh: dict[str, tuple[str, str]] = {}
        self.redirect_blobs = False
        self.seen: list[str] = []
        self.leaked: list[str] = []
        self.host = ""
        self.storage = ""

    async def __aenter__(self) -> TokenFront:
        self._session = ClientSession(auto_decompress=False)
        self._runners = []
        self.host = await self._serve(
            [("GET", "/token", self._get), ("POST", "/token", self._post), ("*", "/v2/{p:.*}", self._v2)]
        )
        self.storage = await self._serve([("GET", "/{p:.*}", self._stored)])
        return self

    async def _serve(self, routes: list[tuple[str, str, object]]) -> str:
        app = web.Application()
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)  # type: ignore[arg-type]
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._runners.append(runner)
        return f"127.0.0.1:{runner.addresses[0][1]}"

    async def __aexit__(self, *_error: object) -> None:
        for runner in self._runners:
            await runner.cleanup()
        await self._session.close()

    def _issue(self, user: tuple[str, str] | None, scopes: list[str]) -> web.Response:
        if user not in self.grants:
            return web.json_response({"errors": [{"code": "UNAUTHORIZED", "message": "bad password"}]}, status=401)
        allowed = [s for s in scopes if s.split(":")[1].startswith(self.grants[user])]
        return web.json_response({"token": base64.b64encode(json.dumps(allowed).encode()).decode(), "expires_in": 300})

    async def _get(self, request: web.Request) -> web.Response:
        self.seen.append(f"GET {request.query_string}")
        user = None
        header = request.headers.get("Authorization", "")
        if header.startswith("Basic "):
            name, _, password = base64.b64decode(header[6:]).decode().partition(":")
            user = (name, password)
        return self._issue(user, request.query.getall("scope", []))

    async def _post(self, request: web.Request) -> web.Response:
        form = parse_qs((await request.read()).decode())
        self.seen.append(f"POST {form['grant_type'][0]}")
        user = self.refresh.get(form["refresh_token"][0])
        if user is None:
            return web.json_response({"error": "invalid_grant"}, status=401)
        reply = self._issue(user, form["scope"][0].split())
        body = json.loads(reply.body)  # type: ignore[arg-type]
        return web.json_response({"access_token": body["token"], "expires_in": 300})

    async def _v2(self, request: web.Request) -> web.StreamResponse:
        repository = request.path.removeprefix("/v2/").split("/manifests/")[0].split("/blobs/")[0]
        header = request.headers.get("Authorization", "").removeprefix("Bearer ")
        allowed = json.loads(base64.b64decode(header)) if header else []
        if f"repository:{repository}:pull" not in allowed:
            challenge = f'Bearer realm="http://{self.host}/token",service="front",scope="repository:{repository}:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if self.redirect_blobs and "/blobs/" in request.path:
            return web.Response(status=307, headers={"Location": f"http://{self.storage}{request.path}"})
        return await self._forward(request)

    async def _stored(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            self.leaked.append(request.path)
        return await self._forward(request)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("accept", "range")}
        async with self._session.request(request.method, f"http://{self._upstream}{request.path}", headers=headers) as reply:
            body = await reply.read()
            kept = {k: v for k, v in reply.headers.items() if k.lower() not in ("transfer-encoding", "content-length")}
            if request.method == "HEAD":
                kept["Content-Length"] = reply.headers["Content-Length"]
            return web.Response(status=reply.status, headers=kept, body=body)
