"""Registries that lie about digests, ask for credentials that are not theirs, and give what they do not have."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from imagesvc.registry.credentials import Auth
from proto.errors import Code, CrispError
from tests.images.certificates import authority, certificate
from tests.images.conftest import Node, StartService
from tests.images.fake_registry import FakeRegistry
from tests.images.image_builder import Layout, Member, tar
from tests.images.registry_server import Registry
from tests.images.test_pull import failure

pytestmark = pytest.mark.root


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("lie", ["{path}", "sha256:../../{path}", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:"])
async def test_a_digest_header_is_no_path(node: Node, start: StartService, tmp_path: Path, lie: str) -> None:
    victim = tmp_path / "victim"
    header = lie.format(path=victim)
    async with FakeRegistry() as registry:
        registry.image("lies", "v1", [tar([Member("x", b"1")])])
        service = await start()
        await service.pull(f"{registry.host}/lies:v1")
        before = descriptors()
        registry.hook = lambda request: (
            web.Response(headers={"Docker-Content-Digest": header}) if "/manifests/" in request.path else None
        )
        for tag in ("v1", "other"):
            error = await failure(service.pull(f"{registry.host}/lies:{tag}"))
            assert error.code is Code.UNKNOWN
            assert "without a byte" in error.message
        assert not victim.exists()
        assert descriptors() <= before + 1  # a kept connection
        # A HEAD that tells no digest is no answer; a GET is.
        registry.hook = lambda request: (
            web.Response(headers={"Docker-Content-Digest": header}) if request.method == "HEAD" else None
        )
        await service.pull(f"{registry.host}/lies:v1")


async def test_what_is_no_digest_becomes_no_file_and_leaks_no_descriptor(node: Node, start: StartService) -> None:
    store = (await start())._store
    before = descriptors()
    for digest in ("/etc/passwd", "sha256:../x", "sha256", "", "sha1:" + "0" * 40):
        with pytest.raises(CrispError, match=r"digest|hexadecimal"):
            await store.ingest(digest, 1)
        with pytest.raises(CrispError, match=r"digest|hexadecimal"):
            store.path(digest)
    assert descriptors() == before


GIVEN = Auth("tenant", "secret-of-the-tests")


def asks(realm: str = "") -> web.Response:
    challenge = f'Bearer realm="{realm}",service="s"' if realm else 'Basic realm="r"'
    return web.Response(status=401, headers={"WWW-Authenticate": challenge})


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_the_target_of_a_redirect_gets_no_credentials(start: StartService, scheme: str) -> None:
    async with FakeRegistry() as registry, FakeRegistry() as elsewhere:
        registry.image("a", "v1", [tar([Member("x", b"1")])])
        realm = f"http://{elsewhere.host}/token" if scheme == "bearer" else ""
        elsewhere.hook = lambda request: web.json_response({"token": "t"}) if "token" in request.path else asks(realm)

        def hook(request: web.Request) -> web.Response | None:
            if "/blobs/" in request.path:
                return web.Response(status=307, headers={"Location": f"http://{elsewhere.host}{request.path}"})
            return None if "Authorization" in request.headers else asks()

        registry.hook = hook
        service = await start()
        error = await failure(service.pull(f"{registry.host}/a:v1", GIVEN))
        assert error.code is Code.UNAUTHENTICATED
        assert registry.sent("Authorization")
        assert elsewhere.requests
        assert elsewhere.sent("Authorization") == []
        assert elsewhere.count("token") == 0


async def test_an_uploads_location_elsewhere_gets_no_credentials(
    registry: Registry, layout: Layout, start: StartService
) -> None:
    layout.image("v1", [tar([Member("x", b"1")])])
    layout.push("v1", f"{registry.host}/hostile/source:v1")
    service = await start()
    await service.pull(f"{registry.host}/hostile/source:v1")
    async with FakeRegistry() as front, FakeRegistry() as elsewhere:

        def hook(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return asks()
            if request.method == "POST":
                return web.Response(status=202, headers={"Location": f"http://{elsewhere.host}/upload"})
            return web.Response(status=404)

        front.hook = hook
        elsewhere.hook = lambda _request: asks()
        error = await failure(service.push(f"{registry.host}/hostile/source:v1", f"{front.host}/x:v1", GIVEN))
        assert error.code is Code.UNAUTHENTICATED
        assert front.sent("Authorization")
        assert elsewhere.count("PATCH /upload") == 1
        assert elsewhere.sent("Authorization") == []


async def test_no_way_leads_from_https_to_http(node: Node, start: StartService, tmp_path: Path) -> None:
    authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path, "server"))
    async with FakeRegistry(context) as front, FakeRegistry() as plain:
        node.hosts(front.host, f'server = "https://{front.host}"\nca = "{tmp_path}/ca.crt"\n')
        service = await start()
        plain.image("a", "v1", [tar([Member("x", b"1")])])
        await service.pull(f"{plain.host}/a:v1")
        front.hook = lambda request: (
            web.Response(status=202, headers={"Location": f"http://{plain.host}/upload"})
            if request.method == "POST"
            else web.Response(status=404)
        )
        before = len(plain.requests)
        error = await failure(service.push(f"{plain.host}/a:v1", f"{front.host}/x:v1"))
        assert "not HTTPS" in error.message
        front.hook = lambda request: web.Response(status=307, headers={"Location": f"http://{plain.host}/v2/a/manifests/v1"})
        error = await failure(service.pull(f"{front.host}/a:v1"))
        assert "not HTTPS" in error.message
        assert len(plain.requests) == before


async def test_mirrors_of_registries_conf_get_their_own_credentials_alone(node: Node, start: StartService) -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as origin:
        for place in (mirror, origin):
            place.image("team/app", "v1", [tar([Member("x", b"1")])])
            place.hook = lambda request: None if "Authorization" in request.headers else asks()
        node.conf.write_text(
            f'[[registry]]\nprefix = "{origin.host}/team"\nlocation = "{origin.host}/team"\n'
            f'[[registry.mirror]]\nlocation = "{mirror.host}/team"\n'
        )
        service = await start()
        reference = f"{origin.host}/team/app:v1"
        image_id = await service.pull(reference, GIVEN)
        assert mirror.requests
        assert mirror.sent("Authorization") == []
        assert set(origin.sent("Authorization")) == {basic("tenant", "secret-of-the-tests")}
        # A disconnected cluster: the origin is not there, and the node's pull secret names the mirror.
        origin.hook = lambda _request: web.Response(status=503)
        pair = base64.b64encode(b"mirror:own").decode()
        node.auth.write_text(json.dumps({"auths": {f"{mirror.host}/team": {"auth": pair}}}))
        assert await service.pull(reference) == image_id
        assert set(mirror.sent("Authorization")) == {basic("mirror", "own")}
        assert await service.pull(reference, GIVEN) == image_id
        assert set(mirror.sent("Authorization")) == {basic("mirror", "own")}


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_a_mirror_of_hosts_toml_has_its_own_entry_too(node: Node, start: StartService) -> None:
    async with FakeRegistry() as mirror:
        mirror.image("team/app", "v1", [tar([Member("x", b"1")])])
        mirror.hook = lambda request: None if "Authorization" in request.headers else asks()
        node.hosts("registry.example", f'server = "http://127.0.0.1:1"\n[host."http://{mirror.host}"]\n')
        node.auth.write_text(json.dumps({"auths": {mirror.host: {"auth": base64.b64encode(b"mirror:own").decode()}}}))
        service = await start()
        await service.pull("registry.example/team/app:v1")
        assert set(mirror.sent("Authorization")) == {basic("mirror", "own")}


async def test_roots_netrc_is_nobodys(start: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1\nlogin root\npassword secret\ndefault\nlogin root\npassword secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with FakeRegistry() as registry:
        registry.image("a", "v1", [tar([Member("x", b"1")])])
        service = await start()
        await service.pull(f"{registry.host}/a:v1")
        assert registry.sent("Authorization") == []


NUMBERS = [
    (b'{"token": "t", "expires_in": 1' + b"0" * 400 + b"}", None),
    (b'{"token": "t", "expires_in": 1e999}', None),
    (b'{"token": "\\ud800"}', Code.UNAUTHENTICATED),
    (b'{"token": "a\\u2028b"}', Code.UNAUTHENTICATED),
]


@pytest.mark.parametrize(("answer", "code"), NUMBERS)
async def test_a_token_servers_answer_is_taken_or_refused(start: StartService, answer: bytes, code: Code | None) -> None:
    async with FakeRegistry() as registry:
        registry.image("a", "v1", [tar([Member("x", b"1")])])

        def hook(request: web.Request) -> web.Response | None:
            if request.path == "/token":
                return web.Response(body=answer)
            return None if "Authorization" in request.headers else asks(f"http://{registry.host}/token")

        registry.hook = hook
        service = await start()
        if code is None:
            await service.pull(f"{registry.host}/a:v1", GIVEN)
        else:
            assert (await failure(service.pull(f"{registry.host}/a:v1", GIVEN))).code is code


@pytest.mark.parametrize(
    ("status", "code"), [*((n, Code.UNAUTHENTICATED) for n in (400, 401, 403, 404)), (418, Code.UNKNOWN)]
)
async def test_a_token_server_that_gives_none(start: StartService, status: int, code: Code) -> None:
    async with FakeRegistry() as registry:
        registry.hook = lambda request: (
            web.Response(status=status) if request.path == "/token" else asks(f"http://{registry.host}/token")
        )
        error = await failure((await start()).pull(f"{registry.host}/a:v1", GIVEN))
        assert error.code is code, error.message
        assert f"token server http://{registry.host}/token" in error.message


@pytest.mark.parametrize("wait", ["nan", "-nan", "1e999", "²", "-5", "0x1"])
async def test_a_retry_after_that_is_no_number(start: StartService, wait: str) -> None:
    async with FakeRegistry() as registry:
        registry.hook = lambda _request: web.Response(status=503, headers={"Retry-After": wait})
        error = await failure((await start()).pull(f"{registry.host}/a:v1"))
        assert error.message.startswith("RegistryUnavailable")
        assert registry.count("GET") == 3


async def test_an_error_is_text_whatever_it_quotes(start: StartService) -> None:
    raw = b"HTTP/1.1 307 x\r\nLocation: http://ho\xffst/\x1b[2J\xed\xa0\x80\r\nContent-Length: 0\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure((await start()).pull(f"127.0.0.1:{port}/a:v1"))
        assert error.code is not Code.INTERNAL
        assert error.message.encode().decode().replace("\n", "").isprintable()
