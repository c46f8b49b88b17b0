"""TLS, credentials and registry configuration, against real registries and a token server."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from imagesvc.registry.credentials import Auth
from proto.errors import Code
from tests.images.certificates import authority, certificate
from tests.images.conftest import Node, StartService
from tests.images.fault_proxy import FaultProxy, Rule
from tests.images.image_builder import Layout, Member, tar
from tests.images.registry_server import Registry
from tests.images.test_pull import failure
from tests.images.token_server import TokenFront

pytestmark = pytest.mark.root

USER, PASSWORD = "worker", "secret-of-the-tests"


@pytest.fixture
def image(layout: Layout, registry: Registry) -> str:
    """An image in the open registry; its name without the host."""
    name = f"access/{layout.path.parent.name.lower().replace('_', '-')}:v1"
    layout.image("v1", [tar([Member("file", b"content" * 1000)])])
    layout.push("v1", f"{registry.host}/{name}")
    return name


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Path]]:
    """A registry with TLS and basic authentication; the directory has its authority."""
    directory = tmp_path_factory.mktemp("secure")
    authority(directory)
    pair = certificate(directory, "server")
    # The registry takes bcrypt alone, which libcrypt has and Python's library has not.
    salt = "$2b$05$" + "a" * 22
    hashed = subprocess.run(
        ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", PASSWORD, salt], capture_output=True, check=True
    )
    users = directory / "htpasswd"
    users.write_text(f"{USER}:{hashed.stdout.decode()}\n")
    auth = f"auth:\n  htpasswd:\n    realm: tests\n    path: {users}\n"
    server = Registry(directory / "registry", auth, pair)
    yield server, directory
    server.close()


async def test_basic_authentication_over_tls(
    secure: tuple[Registry, Path], layout: Layout, node: Node, start: StartService
) -> None:
    server, directory = secure
    layout.image("v1", [tar([Member("file", b"x")])])
    reference = f"{server.host}/private/image:v1"
    layout.push("v1", reference, f"--dest-creds={USER}:{PASSWORD}")
    service = await start()

    node.hosts(server.host, f'server = "https://{server.host}"\n')
    error = await failure(service.pull(reference))
    assert error.message.startswith("RegistryUnavailable: ")
    assert "certificate is not trusted" in error.message

    node.hosts(server.host, f'server = "https://{server.host}"\nca = "{directory}/ca.crt"\n')
    error = await failure(service.pull(reference))
    assert error.code is Code.UNAUTHENTICATED
    error = await failure(service.pull(reference, Auth(USER, "wrong")))
    assert error.code is Code.UNAUTHENTICATED

    image_id = await service.pull(reference, Auth(USER, PASSWORD))
    # An image that is here is no answer for those who may not read it.
    assert (await failure(service.pull(reference))).code is Code.UNAUTHENTICATED
    assert (await failure(service.pull(reference, Auth(USER, "wrong")))).code is Code.UNAUTHENTICATED
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert await service.pull(reference, Auth(auth=pair)) == image_id
    other = Auth(USER, PASSWORD, server_address="https://elsewhere.example")
    assert (await failure(service.pull(reference, other))).code is Code.UNAUTHENTICATED

    node.auth.write_text(json.dumps({"auths": {server.host: {"auth": pair}}}))
    assert await service.pull(reference) == image_id


async def test_skip_verify_and_docker_style_certificates(
    secure: tuple[Registry, Path], layout: Layout, node: Node, start: StartService
) -> None:
    server, directory = secure
    layout.image("v1", [tar([Member("file", b"y")])])
    reference = f"{server.host}/private/other:v1"
    layout.push("v1", reference, f"--dest-creds={USER}:{PASSWORD}")
    service = await start()
    node.hosts(server.host, f'server = "https://{server.host}"\nskip_verify = true\n')
    image_id = await service.pull(reference, Auth(USER, PASSWORD))
    (node.certs / server.host / "hosts.toml").write_text(f'server = "https://{server.host}"\nca = ["{directory}/ca.crt"]')
    assert await service.pull(reference, Auth(USER, PASSWORD)) == image_id


async def test_bearer_tokens(registry: Registry, image: str, start: StartService) -> None:
    async with TokenFront(registry.host) as front:
        front.grants = {None: ("public/",), (USER, PASSWORD): ("access/",), ("other", "x"): ()}
        front.refresh = {"refresh-token": (USER, PASSWORD)}
        front.redirect_blobs = True
        reference = f"{front.host}/{image}"
        service = await start()
        with capture_logs() as logs:
            assert (await failure(service.pull(reference))).code is Code.UNAUTHENTICATED
            error = await failure(service.pull(reference, Auth(USER, "wrong")))
            assert error.code is Code.UNAUTHENTICATED
            assert "bad password" in error.message
            image_id = await service.pull(reference, Auth(USER, PASSWORD))
            assert await service.pull(reference, Auth(identity_token="refresh-token")) == image_id
            assert (await failure(service.pull(reference, Auth("other", "x")))).code is Code.UNAUTHENTICATED
            assert (await failure(service.pull(reference, Auth(identity_token="stale")))).code is Code.UNAUTHENTICATED
            repository = image.partition(":")[0]
            token = base64.b64encode(json.dumps([f"repository:{repository}:pull"]).encode()).decode()
            assert await service.pull(reference, Auth(registry_token=token)) == image_id
        assert front.leaked == []
        assert "POST refresh_token" in front.seen
        assert PASSWORD not in repr(logs)
        assert token not in repr(logs)


async def test_default_hosts_toml_sends_everything_to_a_mirror(
    registry: Registry, image: str, node: Node, start: StartService
) -> None:
    node.hosts("_default", f'[host."http://{registry.host}"]\n  capabilities = ["pull", "resolve"]\n')
    service = await start()
    stored = service.resolve(await service.pull(f"registry.example/{image}"))
    assert stored.repo_tags == (f"registry.example/{image}",)
    assert stored.repo_digests[0].startswith(f"registry.example/{image.partition(':')[0]}@")


async def test_mirrors_are_tried_in_order_and_named_in_the_error(
    registry: Registry, image: str, node: Node, start: StartService
) -> None:
    async with FaultProxy(registry.host) as first, FaultProxy(registry.host) as second:
        first.rules.append(Rule("", status=404))
        node.hosts(
            "registry.example",
            f'server = "http://{registry.host}"\n[host."http://{first.host}"]\n[host."http://{second.host}"]\n'
            'header = {x-team = ["a"]}\n',
        )
        service = await start()
        await service.pull(f"registry.example/{image}")
        assert first.count("GET .*/manifests/") == 1
        assert second.count("GET .*/blobs/") == 2
        assert second.requests[0][2]["x-team"] == "a"
        second.rules.append(Rule("", status=403))
        error = await failure(service.pull("registry.example/no/such:v1"))
        assert error.code is Code.PERMISSION_DENIED
        assert len(error.message.splitlines()) == 4
        for host in (first.host, second.host, registry.host):
            assert f"\n  http://{host}/v2/no/such: HTTP " in error.message


async def test_registries_conf(registry: Registry, image: str, node: Node, start: StartService) -> None:
    repository, _, tag = image.partition(":")
    folder, _, leaf = repository.partition("/")
    node.conf.write_text(
        f'[[registry]]\nprefix = "quay.example/team"\nlocation = "{registry.host}/{folder}"\ninsecure = true\n'
        '[[registry]]\nprefix = "*.blocked.example"\nblocked = true\n'
    )
    service = await start()
    stored = service.resolve(await service.pull(f"quay.example/team/{leaf}:{tag}"))
    assert stored.repo_tags == (f"quay.example/team/{leaf}:{tag}",)
    error = await failure(service.pull("a.blocked.example/x:v1"))
    assert error.code is Code.PERMISSION_DENIED
    dropin = Path(str(node.conf) + ".d")
    dropin.mkdir()
    (dropin / "10.conf").write_text('[[registry]]\nprefix = "quay.example/team"\nblocked = true\n')
    assert (await failure(service.pull(f"quay.example/team/{leaf}:{tag}"))).code is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server = [\n", "hosts.toml"),
        ('[host."ftp://x"]\n', "ftp://x"),
        ('ca = "none.crt"\n', "none.crt"),
    ],
)
async def test_a_broken_hosts_toml_is_named(node: Node, start: StartService, text: str, named: str) -> None:
    node.hosts("registry.example", text)
    service = await start()
    error: Any = await failure(service.pull("registry.example/x:v1"))
    assert error.code is Code.INVALID_ARGUMENT
    assert named in error.message
    assert "hosts.toml" in error.message
