"""Manifests, configurations, platforms, error texts: documents of strangers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc import manifests, media_types
from imagesvc.manifests import Descriptor, Index, Manifest, parse_config, parse_manifest
from imagesvc.platforms import Platform, choose, parse_platform
from imagesvc.registry.errors import Kind, RegistryFailure, from_status, give_up
from imagesvc.store.images import OciConfig
from proto.errors import Code, CrispError

DIGEST = "sha256:" + "a" * 64
CONFIG = {"mediaType": media_types.OCI_CONFIG, "digest": DIGEST, "size": 2}
LAYER = {"mediaType": media_types.OCI_LAYER_GZIP, "digest": DIGEST, "size": 3}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}


def raw(**changes: Any) -> bytes:
    return json.dumps({**MANIFEST, **changes}).encode()


def test_manifest() -> None:
    parsed = parse_manifest(raw(annotations={"a": "b", "c": 1}), DIGEST, media_types.DOCKER_MANIFEST + "; charset=utf-8")
    assert isinstance(parsed, Manifest)
    assert (parsed.media_type, parsed.is_image, parsed.annotations) == (media_types.DOCKER_MANIFEST, True, {"a": "b"})
    assert parsed.layers[0].to_json() == LAYER


def test_index_and_artifact() -> None:
    index = json.dumps({"schemaVersion": 2, "manifests": [{**CONFIG, "platform": {"os": "linux"}}]}).encode()
    parsed = parse_manifest(index, DIGEST)
    assert isinstance(parsed, Index)
    artifact = parse_manifest(raw(artifactType="x/y", config={**CONFIG, "mediaType": media_types.OCI_EMPTY}), DIGEST)
    assert isinstance(artifact, Manifest)
    assert not artifact.is_image


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}", b'{"schemaVersion": 2}'),
        *(raw(schemaVersion=1), raw(schemaVersion=3), raw(manifests=[]), raw(layers={}), raw(config=None)),
        *(raw(layers=[LAYER] * 501), raw(layers=[{**LAYER, "size": -1}]), raw(layers=[{**LAYER, "size": True}])),
        *(raw(layers=[{**LAYER, "digest": "sha256:x"}]), raw(layers=[{**LAYER, "digest": "../../etc"}]), raw(layers=[1])),
        json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [CONFIG], "layers": []}).encode(),
    ],
)
def test_manifests_that_are_refused(document: bytes) -> None:
    with pytest.raises(CrispError) as caught:
        parse_manifest(document, DIGEST)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert DIGEST in caught.value.message


def test_a_blob_above_the_limit() -> None:
    with pytest.raises(CrispError) as caught:
        parse_manifest(raw(layers=[{**LAYER, "size": 1 << 60}]), DIGEST)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


fields = st.sampled_from(["schemaVersion", "config", "layers", "manifests", "mediaType", "rootfs"])


@given(st.dictionaries(fields, json_values))
def test_any_json_is_parsed_or_refused(document: dict[str, Any]) -> None:
    for parse in (manifests.parse_manifest, manifests.parse_config):
        try:
            parse(json.dumps({"schemaVersion": 2, **document}).encode(), DIGEST)
        except CrispError:
            pass


def test_config() -> None:
    document = {
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "config": {"User": "7", "Env": ["A=b"], "Volumes": {"/v": {}}, "Labels": {"l": "1"}, "Cmd": None},
    }
    parsed = parse_config(json.dumps(document).encode(), DIGEST)
    config = OciConfig.from_json(parsed.config)
    assert (parsed.diff_ids, config.user, config.env, config.volumes, config.cmd) == ((DIGEST,), "7", ("A=b",), ("/v",), ())
    assert OciConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "change",
    [{"Env": "A"}, {"Cmd": [1]}, {"User": 3}, {"Labels": ["x"]}, {"Volumes": "x"}, {"Entrypoint": {"a": 1}}],
)
def test_configs_that_are_refused(change: dict[str, Any]) -> None:
    document = {"rootfs": {"type": "layers", "diff_ids": []}, "config": change}
    with pytest.raises(CrispError):
        parse_config(json.dumps(document).encode(), DIGEST)
    with pytest.raises(CrispError):
        parse_config(json.dumps({"rootfs": {"type": "other"}}).encode(), DIGEST)


def entries(*platforms: str) -> list[Descriptor]:
    found = []
    for i, text in enumerate(platforms):
        os_name, _, rest = text.partition("/")
        architecture, _, variant = rest.partition("/")
        platform = {"os": os_name, "architecture": architecture} | ({"variant": variant} if variant else {})
        found.append(Descriptor("", f"sha256:{i:064}", 1, {}, platform if text else {}))
    return found


@pytest.mark.parametrize(
    ("have", "wanted", "index"),
    [
        (["linux/arm64", "linux/amd64", "unknown/unknown"], "linux/amd64", 1),
        (["linux/arm64/v8"], "linux/arm64", 0),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v6", 2),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v6", 0),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v3", 0),
        (["linux/x86_64"], "linux/amd64", 0),
        (["", "linux/amd64"], "linux/amd64", 1),
        ([""], "linux/amd64", 0),
    ],
)
def test_platform_choice(have: list[str], wanted: str, index: int) -> None:
    assert choose(entries(*have), parse_platform(wanted), "it").digest == f"sha256:{index:064}"


def test_no_platform_fits() -> None:
    with pytest.raises(CrispError, match="it has linux/arm64, windows/amd64") as caught:
        choose(entries("windows/amd64", "linux/arm64", "unknown/unknown"), Platform("linux", "amd64"), "it")
    assert caught.value.code is Code.NOT_FOUND
    for bad in ("linux", "a/b/c/d", "/x"):
        with pytest.raises(CrispError):
            parse_platform(bad)


def test_error_texts() -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "not\nyours"}]}).encode()
    failure = from_status(403, body, None)
    assert (failure.kind, failure.message) == (Kind.DENIED, "HTTP 403 DENIED: not yours")
    assert from_status(502, b"<html>long page</html>", "7").retry_after == 7.0
    assert from_status(503, b"busy", "Thu, 01 Jan").message == "HTTP 503 busy"
    error = give_up(
        "x", [("http://a", RegistryFailure(Kind.UNAVAILABLE, "down")), ("http://b", from_status(404, b"", None))]
    )
    assert error.code is Code.UNKNOWN
    assert error.message == "RegistryUnavailable: x: no registry could be reached\n  http://a: down\n  http://b: HTTP 404"
    assert give_up("x", [("a", from_status(404, b"", None))]).code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"User": "9223372036854775808"}, "number of a user"),
        ({"User": "9" * 5000 + ":x"}, "number of a user"),
        ({"Env": ["A=\ud800"]}, "surrogate"),
        ({"Labels": {"\udfff": ""}}, "surrogate"),
        ({"Healthcheck": {"x": ["\udc00"]}}, "surrogate"),
        ({"Memory": float("inf")}, "not JSON"),
    ],
)
def test_what_the_cri_cannot_say_is_refused(config: dict[str, Any], text: str) -> None:
    document = {"rootfs": {"type": "layers", "diff_ids": []}, "config": config}
    with pytest.raises(CrispError, match=text):
        parse_config(json.dumps(document).encode(), "sha256:" + "0" * 64)
    with pytest.raises(CrispError, match="not JSON"):
        parse_config(b'{"rootfs": {"type": "layers"}, "config": {"User": "\xed\xa0\x80"}}', "sha256:" + "0" * 64)


@pytest.mark.parametrize("variant", ["v²", "v" + "9" * 5000, "v-1", "v٣"])
def test_a_variant_that_is_no_number_fails_nothing(variant: str) -> None:
    for name in ("amd64", "arm"):
        platform = {"os": "linux", "architecture": name, "variant": variant}
        entries = [Descriptor("", "sha256:" + "0" * 64, 1, platform=platform)]
        wanted = parse_platform(f"linux/{name}")
        try:
            assert choose(entries, wanted, "x") is entries[0]
        except CrispError as error:
            assert error.code is Code.NOT_FOUND
