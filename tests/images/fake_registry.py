"""A registry of the tests' own, in this process: it says whatever a test wants it to say.

async with FakeRegistry() as registry:
    registry.image("team/app", "v1", [tar([...])])
    registry.hook = lambda request: web.Response(status=403) or None for the usual answer
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

OCI = "application/vnd.oci.image"
Hook = Callable[[web.Request], "web.StreamResponse | Awaitable[web.StreamResponse | None] | None"]


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeRegistry:
    """Content by repository; `requests` lists (method, path, headers) of what came."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.hook: Hook = lambda _request: None
        self.host = ""

    async def __aenter__(self) -> FakeRegistry:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.host = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _headers in self.requests)

    def sent(self, header: str) -> list[str]:
        """The values of a header in all requests that had it."""
        return [headers[header] for _method, _path, headers in self.requests if header in headers]

    def blob(self, repository: str, data: bytes, media_type: str = "") -> dict[str, Any]:
        digest = sha256(data)
        self.blobs.setdefault(repository, {})[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def layer(self, repository: str, tar: bytes) -> dict[str, Any]:
        return self.blob(repository, gzip.compress(tar, 1, mtime=0), f"{OCI}.layer.v1.tar+gzip")

    def image(
        self,
        repository: str,
        tag: str,
        layers: list[bytes],
        config: dict[str, Any] | None = None,
        *,
        document: dict[str, Any] | None = None,
        described: list[dict[str, Any]] | None = None,
        annotations: dict[str, str] | None = None,
    ) -> str:
        """Stores an image; returns its manifest's digest. `document` is merged into the configuration."""
        made = {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
            **(document or {}),
        }
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.blob(repository, json.dumps(made).encode(), f"{OCI}.config.v1+json"),
            "layers": [self.layer(repository, layer) for layer in layers] if described is None else described,
        }
        if annotations:
            manifest["annotations"] = annotations
        return self.manifest(repository, tag, manifest)

    def manifest(self, repository: str, tag: str, document: dict[str, Any]) -> str:
        raw = json.dumps(document).encode()
        media_type = document.get("mediaType", f"{OCI}.manifest.v1+json")
        stored = self.manifests.setdefault(repository, {})
        stored[tag] = stored[sha256(raw)] = (media_type, raw)
        return sha256(raw)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.headers)))
        answer = self.hook(request)
        if answer is not None and not isinstance(answer, web.StreamResponse):
            answer = await answer
        return answer if answer is not None else self.usual(request)

    def usual(self, request: web.Request) -> web.Response:
        """What an honest registry answers."""
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", request.path):
            media_type, raw = self.manifests.get(match[1], {}).get(match[2], ("", b""))
            headers = {"Content-Type": media_type, "Docker-Content-Digest": sha256(raw)}
        elif match := re.fullmatch(r"/v2/(.+)/blobs/(.+)", request.path):
            raw = self.blobs.get(match[1], {}).get(match[2], b"")
            headers = {}
        else:
            return web.Response(status=404)
        if not raw:
            return web.Response(status=404)
        return self.part(request, raw, headers)

    def part(self, request: web.Request, raw: bytes, headers: dict[str, str]) -> web.Response:
        """The body, or what a Range header asks for of it."""
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(raw))})
        if wanted := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            start = int(wanted[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"}
            return web.Response(status=206, body=raw[start:], headers=headers)
        return web.Response(body=raw, headers=headers)
