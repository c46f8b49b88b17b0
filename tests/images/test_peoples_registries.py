"""Registries, proxies and files as people have them: what containerd and CRI-O take is taken."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from imagesvc.registry.client import _make_context
from imagesvc.registry.endpoint import Tls
from imagesvc.registry.proxies import proxy_for
from proto.errors import Code
from tests.images.conftest import Node, StartService
from tests.images.fake_registry import OCI, FakeRegistry, sha256
from tests.images.image_builder import Member, directory, hardlink, tar
from tests.images.layer_stack import run_unpack
from tests.images.test_pull import failure

pytestmark = pytest.mark.root


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
async def test_a_registry_without_head(start: StartService, status: int) -> None:
    async with FakeRegistry() as registry:
        digest = registry.image("a", "v1", [tar([Member("x", b"1")])])
        registry.hook = lambda request: web.Response(status=status) if request.method == "HEAD" else None
        service = await start()
        for _ in range(2):
            await service.pull(f"{registry.host}/a:v1")
            await service.pull(f"{registry.host}/a@{digest}")


async def test_documents_as_they_come(start: StartService) -> None:
    async with FakeRegistry() as registry:
        config = registry.blob("empty", b'{"architecture": "amd64", "os": "linux"}', f"{OCI}.config.v1+json")
        manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config}
        registry.manifest("empty", "v1", {**manifest, "layers": None})
        digest = registry.image("index", "amd64", [tar([Member("x", b"1")])])
        size = len(registry.manifests["index"]["amd64"][1])
        platform = {"os": "linux", "architecture": "amd64"}
        described = {"mediaType": f"{OCI}.manifest.v1+json", "size": size}
        entries = [
            {**described, "digest": "blake3:" + "0" * 64, "platform": platform},
            {**described, "digest": sha256(b"signature"), "artifactType": "application/x-signature"},
            {**described, "digest": sha256(b"other"), "artifactType": "x", "platform": platform},
            {**described, "digest": digest},
        ]
        registry.manifest("index", "v1", {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries})
        service = await start()
        assert service.resolve(await service.pull(f"{registry.host}/empty:v1")).layers == ()
        assert service.resolve(await service.pull(f"{registry.host}/index:v1")).manifest == digest


def test_aufs_links_and_names_that_stay_inside(tmp_path: Path) -> None:
    layer = tar(
        [
            directory(".wh..wh.plnk/"),
            Member(".wh..wh.plnk/12.34", b"content"),
            Member(".wh..wh.aufs", b""),
            directory("d/"),
            hardlink("d/one", ".wh..wh.plnk/12.34"),
            hardlink("d/two", ".wh..wh.plnk/12.34"),
            Member("d/../e/./../file", b"inside"),
        ]
    )
    answer = run_unpack(layer, tmp_path / "layer", None)
    assert "ok" in answer, answer
    root = tmp_path / "layer/fs"
    assert sorted(p.name for p in root.iterdir()) == ["d", "file"]
    assert (root / "d/one").read_bytes() == b"content"
    assert (root / "d/one").stat().st_nlink == 2


async def test_missing_diff_ids_of_an_archive_are_an_error(start: StartService, tmp_path: Path) -> None:
    async with FakeRegistry() as source:
        source.image("a", "v1", [tar([Member("x", b"1")])], document={"rootfs": {"type": "layers", "diff_ids": []}})
        blobs = tmp_path / "layout/blobs/sha256"
        blobs.mkdir(parents=True)
        for data in [*source.blobs["a"].values(), source.manifests["a"]["v1"][1]]:
            (blobs / sha256(data)[7:]).write_bytes(data)
        raw = source.manifests["a"]["v1"][1]
        entry = {"mediaType": f"{OCI}.manifest.v1+json", "digest": sha256(raw), "size": len(raw)}
        (tmp_path / "layout/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        service = await start()
        error = await failure(service.import_archive(str(tmp_path / "layout"), "a.example/b:v1"))
        assert error.code is Code.INVALID_ARGUMENT
        assert "its configuration 0" in error.message


async def test_hosts_toml_as_containerd_reads_it(node: Node, start: StartService) -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as resolver:
        for place in (mirror, resolver):
            place.image("a", "v1", [tar([Member("x", b"1")])])
        node.hosts(
            "registry.example",
            f'server = "http://{mirror.host}"\nfuture_key = 1\n[host."http://{resolver.host}"]\n'
            'capabilities = ["resolve", "referrers"]\ndial_timeout = "1m30.5s"\nanother = true\n'
            'header = {x-team = ["a", "b"]}\n',
        )
        service = await start()
        await service.pull("registry.example/a:v1")
        assert resolver.count("/manifests/") == 1
        assert resolver.count("/blobs/") == 0
        assert mirror.count("GET .*/blobs/") == 2
        raw = [headers for _m, _p, headers in resolver.requests]
        assert raw
        node.hosts("empty.example", f'server = ""\n[host."http://{mirror.host}"]\ncapabilities = []\n')
        await service.pull("empty.example/a:v1")


async def test_short_names(node: Node, start: StartService) -> None:
    async with FakeRegistry() as registry:
        registry.image("team/app", "v1", [tar([Member("x", b"1")])])
        registry.image("plain", "v1", [tar([Member("x", b"2")])])
        node.conf.write_text(f'unqualified-search-registries = ["{registry.host}"]\n')
        dropin = Path(str(node.conf) + ".d")
        dropin.mkdir()
        (dropin / "000-shortnames.conf").write_text(f'[aliases]\n"app" = "{registry.host}/team/app"\n')
        service = await start()
        assert service.resolve(await service.pull("app:v1")).repo_tags == ("docker.io/library/app:v1",)
        await service.pull("plain:v1")
        node.conf.write_text('unqualified-search-registries = ["a.example", "b.example"]\nshort-name-mode = "enforcing"\n')
        error = await failure(service.pull("plain:v2"))
        assert error.code is Code.INVALID_ARGUMENT
        assert "a.example, b.example" in error.message
        node.conf.write_text('[[registry]]\nprefix = "*.blocked.example:5000/"\nblocked = true\n')
        error = await failure(service.pull("x.blocked.example:5000/a/b:v1"))
        assert error.code is Code.PERMISSION_DENIED


async def test_credential_helpers(node: Node, start: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$1" = get ] && echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"$host\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    async with FakeRegistry() as registry:
        registry.image("a", "v1", [tar([Member("x", b"1")])])
        registry.hook = lambda request: (
            None
            if "Authorization" in request.headers
            else web.Response(status=401, headers={"WWW-Authenticate": "Negotiate, Basic realm=x"})
        )
        service = await start()
        for document in ({"credHelpers": {registry.host: "tests"}}, {"credsStore": "tests"}):
            node.auth.write_text(json.dumps(document))
            await service.pull(f"{registry.host}/a:v1")
        node.auth.write_text(json.dumps({"credsStore": "../../bin/sh"}))
        assert "not the name of a credential helper" in (await failure(service.pull(f"{registry.host}/a:v1"))).message


@pytest.mark.parametrize(
    ("host", "no_proxy", "goes"),
    [
        ("registry.example", "", True),
        ("registry.example", "example", False),
        ("registry.example", ".registry.example", True),
        ("a.registry.example", "*.registry.example", False),
        ("registry.example", "registry.example:80", True),
        ("registry.example", "registry.example:443", False),
        ("10.1.2.3", "10.0.0.0/8", False),
        ("11.1.2.3", "10.0.0.0/8, nonsense/99", True),
        ("fd00::1", "fd00::/16", False),
        ("localhost", "", False),
        ("127.0.0.9", "", False),
        ("::1", "", False),
        ("registry.example", "*", False),
    ],
)
def test_proxies_are_gos(host: str, no_proxy: str, goes: bool) -> None:
    environment = {"https_proxy": "proxy.example:3128", "NO_PROXY": no_proxy}
    assert proxy_for("https", host, 443, environment) == ("http://proxy.example:3128" if goes else "")
    assert proxy_for("http", host, 80, environment) == ""


@pytest.mark.parametrize("value", ["socks5://", "http://[", "http://x:y"])
def test_a_proxy_that_is_none(value: str) -> None:
    with pytest.raises(ValueError, match=r"proxy|[Pp]ort|IPv6|Invalid"):
        proxy_for("https", "registry.example", 443, {"HTTPS_PROXY": value})


async def test_socks(node: Node, start: StartService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of the test sends everything to one registry, whatever name it is asked for."""
    asked: list[bytes] = []
    async with FakeRegistry() as registry:
        registry.image("a", "v1", [tar([Member("x", b"1")])])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(3)
            writer.write(b"\5\0")
            head = await reader.readexactly(5)
            asked.append(await reader.readexactly(head[4]))
            await reader.readexactly(2)
            writer.write(b"\5\0\0\1\0\0\0\0\0\0")
            host, _, port = registry.host.partition(":")
            there = await asyncio.open_connection(host, int(port))

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    target.write(data)
                target.close()

            await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"socks5://127.0.0.1:{port}")
        node.hosts("registry.example", 'server = "http://inside.example"\n')
        service = await start()
        await service.pull("registry.example/a:v1")
        assert set(asked) == {b"inside.example"}
        await service.close()
        server.close()


@pytest.mark.parametrize(
    "name",
    ["r.example:99999/x", "r.example:0/x", "a" * 64 + ".example/x", "[::::]/x", "[1.2.3.4]/x", "r.example:123456789/x"],
)
async def test_hosts_that_are_none(start: StartService, name: str) -> None:
    assert (await failure((await start()).pull(name))).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "target", ["http://[", "http://a:b/", "http://" + "a" * 70 + ".example/", "//", "http://x y/", "gopher://x"]
)
@pytest.mark.parametrize("where", ["redirect", "realm", "proxy host"])
async def test_urls_that_are_none_are_the_registrys_fault(start: StartService, node: Node, target: str, where: str) -> None:
    async with FakeRegistry() as registry:
        if where == "redirect":
            registry.hook = lambda _request: web.Response(status=307, headers={"Location": target})
        elif where == "realm":
            challenge = f'Bearer realm="{target}"'
            registry.hook = lambda _request: web.Response(status=401, headers={"WWW-Authenticate": challenge})
        else:
            node.hosts("registry.example", f'server = "http://{registry.host}"\n[host."http://xn--{"a" * 70}.example"]\n')
            registry.image("x", "v1", [tar([])])
            await (await start()).pull("registry.example/x:v1")
            return
        error = await failure((await start()).pull(f"{registry.host}/x:v1"))
        assert error.code in (Code.UNKNOWN, Code.UNAUTHENTICATED), error.message


async def test_files_of_an_artifact_come_side_by_side(start: StartService) -> None:
    async with FakeRegistry() as registry:
        title = "org.opencontainers.image.title"
        layers = [{**registry.blob("m", bytes([i]) * 1000, "x/y"), "annotations": {title: f"sub/f{i}"}} for i in range(3)]
        config = registry.blob("m", b"{}", "application/vnd.oci.empty.v1+json")
        document = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "artifactType": "x/y", "config": config}
        registry.manifest("m", "v1", {**document, "layers": layers})
        waiting: list[str] = []
        together = asyncio.Event()

        async def meet(request: web.Request) -> web.StreamResponse:
            waiting.append(request.path)
            if len(waiting) == 3:
                together.set()
            await together.wait()
            return registry.usual(request)

        registry.hook = lambda request: meet(request) if "/blobs/" in request.path else None
        service = await start()
        async with asyncio.timeout(60):
            image = service.resolve(await service.pull(f"{registry.host}/m:v1"))
        root = Path(service.trees(image)[0])
        assert sorted(p.name for p in (root / "sub").iterdir()) == ["f0", "f1", "f2"]


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/386", "linux/arm64"], "linux/386"),
        ("linux/amd64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/amd64"], "linux/arm/v7"),
    ],
)
async def test_what_the_processor_runs_too(start: StartService, wanted: str, offered: list[str], chosen: str) -> None:
    async with FakeRegistry() as registry:
        entries = []
        for platform in offered:
            digest = registry.image("a", platform.replace("/", "-"), [tar([Member("p", platform.encode())])])
            system, architecture, variant = [*platform.split("/"), ""][:3]
            described = {"os": system, "architecture": architecture, "variant": variant}
            entries.append({"mediaType": f"{OCI}.manifest.v1+json", "digest": digest, "size": 1, "platform": described})
        registry.manifest("a", "v1", {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries})
        service = await start(platform=wanted)
        image = service.resolve(await service.pull(f"{registry.host}/a:v1"))
        assert (Path(service.trees(image)[0]) / "p").read_text() == chosen


def test_private_authorities_are_checked_as_go_does() -> None:
    assert not _make_context(Tls()).verify_flags & ssl.VERIFY_X509_STRICT


async def test_an_added_root_file_system_has_its_size(start: StartService, tmp_path: Path) -> None:
    (tmp_path / "root/deep").mkdir(parents=True)
    (tmp_path / "root/deep/file").write_bytes(bytes(3 << 20))
    service = await start()
    image = service.resolve(await service.add_rootfs("local.example/r:v1", str(tmp_path / "root")))
    assert 3 << 20 < image.size < 4 << 20
