"""What one tenant's image has is given to no other who only names it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from imagesvc.registry.credentials import Auth
from proto.errors import Code
from tests.images.conftest import StartService
from tests.images.fake_registry import OCI, FakeRegistry, sha256
from tests.images.image_builder import Member, tar
from tests.images.test_pull import failure

pytestmark = pytest.mark.root

SECRET = tar([Member("secret", b"of the other tenant" * 1000)])
VICTIM = Auth("victim", "p")


def private(request: web.Request) -> web.Response | None:
    if "Authorization" in request.headers:
        return None
    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})


async def victim(registry: FakeRegistry, service: Any) -> tuple[str, dict[str, Any]]:
    """A private image on the node: its manifest's digest, and the manifest."""
    registry.image("private", "v1", [SECRET], {"Env": ["PASSWORD=secret"]})
    registry.hook = private
    await service.pull(f"{registry.host}/private:v1", VICTIM)
    digest = next(d for d in registry.manifests["private"] if d.startswith("sha256:"))
    return digest, json.loads(registry.manifests["private"][digest][1])


async def test_the_digest_of_anothers_manifest_gives_nothing(start: StartService) -> None:
    async with FakeRegistry() as registry, FakeRegistry() as own:
        service = await start()
        digest, _manifest = await victim(registry, service)
        told = web.Response
        own.hook = lambda request: (
            told(headers={"Docker-Content-Digest": digest}) if "/manifests/" in request.path else told(status=404)
        )
        for name in (f"{own.host}/x:v1", f"{own.host}/x@{digest}", f"{own.host}/private:v1"):
            await failure(service.pull(name, Auth("tenant", "t")))
            assert service.resolve(name) is None
        # HEAD is what a known name is asked with.
        own.hook = lambda _request: None
        own.image("mine", "v1", [tar([Member("x", b"")])])
        await service.pull(f"{own.host}/mine:v1")
        own.hook = lambda request: (
            told(headers={"Docker-Content-Digest": digest}) if request.method == "HEAD" else told(status=404)
        )
        assert (await failure(service.pull(f"{own.host}/mine:v1"))).code is Code.NOT_FOUND
        assert len(service.list()) == 2
        assert len(service.resolve(f"{registry.host}/private:v1").repo_digests) == 1


@pytest.mark.parametrize("listed", ["manifest", "configuration", "layer", "diff id"])
async def test_what_a_manifest_lists_has_to_be_there(start: StartService, listed: str) -> None:
    """The attacker's registry says yes to every HEAD, and has nothing of the victim's."""
    async with FakeRegistry() as registry, FakeRegistry() as own:
        service = await start()
        digest, manifest = await victim(registry, service)
        if listed == "manifest":
            entry = {"mediaType": manifest["mediaType"], "digest": digest, "size": 1, "platform": PLATFORM}
            own.manifest("x", "v1", {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]})
        elif listed == "configuration":
            own.manifest("x", "v1", manifest | {"annotations": {"a": "b"}})
        elif listed == "layer":
            own.image("x", "v1", [SECRET], described=manifest["layers"])
            own.blobs["x"].pop(manifest["layers"][0]["digest"], None)
        else:
            own.image("x", "v1", [], document={"rootfs": {"type": "layers", "diff_ids": [sha256(SECRET)]}}, described=[
                own.layer("x", tar([Member("mine", b"x")]))
            ])  # fmt: skip
        own.hook = lambda request: web.Response() if request.method == "HEAD" else None
        error = await failure(service.pull(f"{own.host}/x:v1"))
        assert error.code is (Code.ABORTED if listed == "diff id" else Code.NOT_FOUND)
        assert len(service.list()) == 1


PLATFORM = {"os": "linux", "architecture": "amd64"}


async def test_who_has_the_bytes_shares_them(start: StartService) -> None:
    """Another registry proves a layer by giving it; another repository of the same one, by saying that it has it."""
    async with FakeRegistry() as registry, FakeRegistry() as other:
        service = await start()
        _digest, manifest = await victim(registry, service)
        blob = manifest["layers"][0]["digest"]
        for place, repository in ((registry, "team/too"), (other, "x")):
            place.image(repository, "v1", [SECRET, tar([Member("more", b"")])])
            await service.pull(f"{place.host}/{repository}:v1", VICTIM)
        assert registry.count(f"GET .*{blob}") == 1
        assert registry.count(f"HEAD /v2/team/too/blobs/{blob}") >= 1
        assert other.count(f"GET .*{blob}") == 1
        roots = {service.lower_dirs(image)[-1] for image in service.list()}
        assert len(roots) == 1
        assert (service.trees(service.list()[0])[-1] / "secret").exists()


async def test_a_partial_download_is_its_owners(start: StartService, node: Any) -> None:
    """What the victim has of a blob does not complete what a stranger has not."""
    async with FakeRegistry() as registry, FakeRegistry() as own:
        service = await start(pull_progress_timeout=1.0)
        registry.image("private", "v1", [SECRET])
        layer = json.loads(registry.manifests["private"]["v1"][1])["layers"][0]
        # The victim's registry gives all but the end, and refuses from then on.
        state = {"asked": 0}

        def hook(request: web.Request) -> web.Response | None:
            if layer["digest"] not in request.path:
                return None
            state["asked"] += 1
            if state["asked"] > 1:
                return web.Response(status=403)
            body = registry.blobs["private"][layer["digest"]]
            return web.Response(body=body[:-1], headers={"Content-Length": str(len(body))})

        registry.hook = hook
        await failure(service.pull(f"{registry.host}/private:v1"))
        own.image("x", "v1", [SECRET])
        ranges: list[str] = []

        def tail(request: web.Request) -> web.Response | None:
            if layer["digest"] in request.path:
                ranges.append(request.headers.get("Range", ""))
                return web.Response(status=404)
            return None

        own.hook = tail
        assert (await failure(service.pull(f"{own.host}/x:v1"))).code is Code.NOT_FOUND
        assert ranges == [""]
