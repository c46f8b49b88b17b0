"""Manifests, indexes and image configurations: JSON of strangers in, checked dataclasses out. No I/O.

Quotes are from the OCI image specification 1.1. Docker's schema 2 differs in media types alone. Everything wrong raises
CrispError(INVALID_ARGUMENT) that names the digest of the document, so that it can be found in the registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imagesvc import media_types
from imagesvc.limits import MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_UID, Limits
from imagesvc.references import check_digest
from proto.errors import Code, CrispError, invalid


@dataclass(frozen=True)
class Descriptor:
    """`application/vnd.oci.descriptor.v1+json`: a typed pointer to a blob. Size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] = field(default_factory=dict)
    artifact_type: str = ""
    """Of an entry of an index: what it leads to is no image."""

    def to_json(self) -> dict[str, Any]:
        """The descriptor as it stands in a manifest."""
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        if self.platform:
            out["platform"] = dict(self.platform)
        return out


@dataclass(frozen=True)
class Manifest:
    """One platform's image, or an artifact."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    artifact_type: str = ""

    @property
    def is_image(self) -> bool:
        """Whether a container can run from it; otherwise it is an artifact, whose layers are plain files."""
        if self.config.media_type in media_types.IMAGE_CONFIGS:
            return True
        return not self.artifact_type and all(media_types.is_layer(layer.media_type) for layer in self.layers)


@dataclass(frozen=True)
class Index:
    """A list of manifests, one for each platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True)
class ImageConfigDocument:
    """The parts of an image configuration that this project acts upon."""

    diff_ids: tuple[str, ...]
    architecture: str
    os: str
    created: str
    config: Mapping[str, Any]


def parse_manifest(data: bytes, digest: str, content_type: str = "", limits: Limits | None = None) -> Manifest | Index:
    """Tells an index from a manifest and checks it.

    `content_type` is the reply header's and decides only where the document does not say what it is: Docker's tools and
    old registries leave `mediaType` out.
    """
    document = _object(data, f"manifest {digest}")
    media_type = str(document.get("mediaType") or content_type.partition(";")[0].strip())
    if media_type == media_types.DOCKER_SCHEMA1 or document.get("schemaVersion") == 1:
        raise invalid(f"manifest {digest} has Docker schema 1, which no current tool writes: push the image again")
    if document.get("schemaVersion") != 2:
        raise invalid(f"manifest {digest} has schemaVersion {document.get('schemaVersion')!r}, and only 2 is known")
    if media_type in media_types.INDEXES or (media_type not in media_types.MANIFESTS and "manifests" in document):
        return _parse_index(document, digest, media_type or media_types.OCI_INDEX)
    if "config" not in document:
        raise invalid(f"manifest {digest} of type {media_type!r} is neither an image manifest nor an index")
    if "manifests" in document:
        # CVE-2021-41190: a document that is both reads differently to different tools.
        raise invalid(f"manifest {digest} has both `config` and `manifests`, which the OCI specification forbids")
    where = f"manifest {digest}"
    layers = _list([] if document.get("layers") is None else document["layers"], f"{where}: layers")
    if len(layers) > MAX_LAYERS:
        raise invalid(f"{where} has {len(layers)} layers; overlayfs takes at most {MAX_LAYERS}")
    bounds = limits or Limits()
    return Manifest(
        media_type=media_type if media_type in media_types.MANIFESTS else media_types.OCI_MANIFEST,
        config=_descriptor(document["config"], f"{where}: config", bounds),
        layers=tuple(_descriptor(layer, f"{where}: layer", bounds) for layer in layers),
        annotations=_strings(document.get("annotations")),
        artifact_type=str(document.get("artifactType") or ""),
    )


def _parse_index(document: Mapping[str, Any], digest: str, media_type: str) -> Index:
    if "config" in document or "layers" in document:
        raise invalid(f"index {digest} also has `config` or `layers`, which the OCI specification forbids")
    entries = _list(document.get("manifests"), f"index {digest}: manifests")
    if len(entries) > MAX_INDEX_ENTRIES:
        raise invalid(f"index {digest} lists {len(entries)} manifests; at most {MAX_INDEX_ENTRIES} are read")
    bounds = Limits()
    known = [entry for entry in entries if not isinstance(entry, dict) or _is_known_digest(entry.get("digest"))]
    return Index(media_type, tuple(_descriptor(entry, f"index {digest}", bounds) for entry in known))


def _is_known_digest(digest: Any) -> bool:
    """False for an algorithm that is not known here: such an entry is skipped, and no error of the whole index."""
    return not isinstance(digest, str) or digest.partition(":")[0] in ("sha256", "sha512") or ":" not in digest


def parse_config(data: bytes, digest: str) -> ImageConfigDocument:
    """Reads an image configuration (`application/vnd.oci.image.config.v1+json`)."""
    where = f"image configuration {digest}"
    document = _object(data, where)
    rootfs = document.get("rootfs") or {"type": "layers"}  # an image without layers need not have it
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise invalid(f"{where}: rootfs is missing or its type is not 'layers'")
    diff_ids = tuple(str(d) for d in _list(rootfs.get("diff_ids") or [], f"{where}: rootfs.diff_ids"))
    for diff_id in diff_ids:
        check_digest(diff_id, where)
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise invalid(f"{where}: config is not an object")
    _check_run_config(config, where)
    return ImageConfigDocument(
        diff_ids=diff_ids,
        architecture=str(document.get("architecture") or ""),
        os=str(document.get("os") or ""),
        created=str(document.get("created") or ""),
        config=config,
    )


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_RUN_CONFIG_LISTS = ("Env", "Entrypoint", "Cmd")
_RUN_CONFIG_STRINGS = ("User", "WorkingDir", "StopSignal")
_RUN_CONFIG_OBJECTS = ("Volumes", "Labels", "ExposedPorts")


def _check_run_config(config: Mapping[str, Any], where: str) -> None:
    """The fields that later become a process must have the types that the specification gives them."""
    for name in _RUN_CONFIG_LISTS:
        value = config.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise invalid(f"{where}: config.{name} is not a list of strings")
    for name in _RUN_CONFIG_STRINGS:
        if not isinstance(config.get(name) or "", str):
            raise invalid(f"{where}: config.{name} is not a string")
    for name in _RUN_CONFIG_OBJECTS:
        if not isinstance(config.get(name) or {}, dict):
            raise invalid(f"{where}: config.{name} is not an object")
    user = (config.get("User") or "").partition(":")[0]
    if user.isascii() and user.isdigit() and (len(user) > 19 or int(user) > MAX_UID):
        # CRI's Image.uid is an int64; one image that cannot be said would fail the list of all.
        raise invalid(f"{where}: config.User {user[:80]} is not the number of a user")


def _descriptor(value: Any, where: str, limits: Limits) -> Descriptor:
    if not isinstance(value, dict):
        raise invalid(f"{where} is not a descriptor")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise invalid(f"{where}: size {size!r} is not a number of bytes")
    if size > limits.blob_bytes:
        raise CrispError(
            Code.RESOURCE_EXHAUSTED, f"{where}: a blob of {size} bytes is above this node's limit of {limits.blob_bytes}"
        )
    platform = value.get("platform")
    return Descriptor(
        media_type=str(value.get("mediaType") or ""),
        digest=check_digest(str(value.get("digest") or ""), where),
        size=size,
        annotations=_strings(value.get("annotations")),
        platform=platform if isinstance(platform, dict) else {},
        artifact_type=str(value.get("artifactType") or ""),
    )


def _object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object whose every string can be said in the CRI, whose strings are UTF-8."""
    try:
        document = json.loads(data.decode(), parse_constant=_refuse_constant)
        text = json.dumps(document, ensure_ascii=False)  # may recurse where reading did not
    except (ValueError, RecursionError) as error:
        raise invalid(f"{where} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise invalid(f"{where} is not a JSON object")
    if _LONE_SURROGATE.search(text):
        raise invalid(f"{where} has half of a surrogate pair in a string, which is no text")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{where} is not a list")
    return value


def _strings(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(k): v for k, v in value.items() if isinstance(v, str)}
