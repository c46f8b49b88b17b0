"""Registries that lie about digests, ask for credentials that are not theirs, and give what they do not have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiohttp import web

from proto.errors import Code, CrispError
from tests.images.conftest import Node, StartService
from tests.images.fake_registry import FakeRegistry
from tests.images.image_builder import Member, tar
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
