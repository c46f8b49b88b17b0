"""Images: their records, and the index that answers List and Status from memory.

A record is JSON in the daemon's database, one for each image id. The image id is the digest of the configuration, as the
kubelet expects; an artifact's is its manifest's, since artifacts share one empty configuration.

Names: a tag belongs to one image; when it is pulled again and means another image, it moves, and the old image stays with
its digest references until it is removed.
"""

from __future__ import annotations

import asyncio
import fnmatch
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from imagesvc.limits import MAX_UID
from imagesvc.references import id_prefix, try_parse
from proto.errors import Code, CrispError, not_found

IMAGE, ROOTFS, ARTIFACT = "image", "rootfs", "artifact"
_MAX_CHECKED = 64

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class OciConfig:
    """What an image says about running it (OCI config.md, "config")."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> OciConfig:
        """From a checked configuration (manifests.parse_config)."""
        return cls(
            user=config.get("User") or "",
            env=tuple(config.get("Env") or ()),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            cmd=tuple(config.get("Cmd") or ()),
            working_dir=config.get("WorkingDir") or "",
            volumes=tuple(config.get("Volumes") or ()),
            stop_signal=config.get("StopSignal") or "",
            labels={str(k): str(v) for k, v in (config.get("Labels") or {}).items()},
            exposed_ports=tuple(config.get("ExposedPorts") or ()),
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands in an image configuration."""
        out: dict[str, Any] = {
            "User": self.user,
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "WorkingDir": self.working_dir,
            "Volumes": {name: {} for name in self.volumes},
            "StopSignal": self.stop_signal,
            "Labels": dict(self.labels),
            "ExposedPorts": {name: {} for name in self.exposed_ports},
        }
        return {name: value for name, value in out.items() if value}


@dataclass(frozen=True)
class LayerRef:
    """A layer of an image: its directory's key, and what its blob was in the registry (empty where it never was one)."""

    key: str
    diff_id: str
    digest: str = ""
    size: int = 0
    media_type: str = ""


@dataclass(frozen=True)
class Image:
    """One image on this node. Sizes in bytes, times in seconds since the epoch."""

    id: str
    kind: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    config: OciConfig
    pinned: bool
    layers: tuple[LayerRef, ...]
    """Bottom first."""
    manifest: str = ""
    """Digest of the manifest for this platform."""
    top: str = ""
    """Digest of what the reference named: the index, or the same as `manifest`."""
    directory: str = ""
    """The plain directory of an added root file system."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Of the manifest by which it came first."""
    other_annotations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By name, where a name's own manifest has others: anybody can write a manifest for anybody's configuration."""
    created_at: float = 0.0
    """When it came to this node."""
    checked: tuple[str, ...] = ()
    """Fingerprints of the credentials with which a registry has served it."""
    architecture: str = ""
    os: str = ""
    removed: bool = False
    """Removed by the client while containers used it: no longer shown, kept until they are gone."""

    @property
    def uid(self) -> int | None:
        """The numeric user that the image runs as, if it says a number: ASCII digits (Go's ParseInt) of an int64."""
        user = self.config.user.partition(":")[0]
        return int(user) if user.isascii() and user.isdigit() and len(user) < 20 and int(user) <= MAX_UID else None

    @property
    def username(self) -> str:
        """The user's name, if it says a name."""
        return "" if self.uid is not None else self.config.user.partition(":")[0]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The layers' diff ids, bottom first."""
        return tuple(layer.diff_id for layer in self.layers)

    def annotations_of(self, *names: str) -> Mapping[str, str]:
        """Those of the first of these that is a name of the image; else, for an id, those on which all its names agree."""
        own = {*self.repo_tags, *self.repo_digests}
        for name in names:
            reference = try_parse(name)
            if reference is not None and str(reference) in own:
                return self.other_annotations.get(str(reference), self.annotations)
        common = dict(self.annotations)
        for other in self.other_annotations.values():
            common = {key: value for key, value in common.items() if other.get(key) == value}
        return common

    def describe(self) -> dict[str, Any]:
        """For verbose status: JSON-able."""
        return {
            "kind": self.kind,
            "manifest": self.manifest,
            "index": self.top,
            "directory": self.directory,
            "layers": [vars(layer) for layer in self.layers],
            "annotations": dict(self.annotations),
            "imageSpec": {"config": self.config.to_json(), "architecture": self.architecture, "os": self.os},
            "createdAt": self.created_at,
        }

    def to_record(self) -> dict[str, Any]:
        """The document that is stored."""
        return {
            "id": self.id,
            "kind": self.kind,
            "tags": list(self.repo_tags),
            "digests": list(self.repo_digests),
            "size": self.size,
            "config": self.config.to_json(),
            "layers": [[x.key, x.diff_id, x.digest, x.size, x.media_type] for x in self.layers],
            "manifest": self.manifest,
            "top": self.top,
            "directory": self.directory,
            "annotations": dict(self.annotations),
            "other_annotations": {name: dict(value) for name, value in self.other_annotations.items()},
            "created_at": self.created_at,
            "checked": list(self.checked),
            "architecture": self.architecture,
            "os": self.os,
            "removed": self.removed,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Image:
        """The inverse of `to_record`; `pinned` is a matter of configuration, and set by the index."""
        return cls(
            id=record["id"],
            kind=record["kind"],
            repo_tags=tuple(record["tags"]),
            repo_digests=tuple(record["digests"]),
            size=record["size"],
            config=OciConfig.from_json(record["config"]),
            pinned=False,
            layers=tuple(LayerRef(*fields) for fields in record["layers"]),
            manifest=record["manifest"],
            top=record["top"],
            directory=record["directory"],
            annotations=record["annotations"],
            other_annotations=record.get("other_annotations", {}),
            created_at=record["created_at"],
            checked=tuple(record["checked"]),
            architecture=record["architecture"],
            os=record["os"],
            removed=record["removed"],
        )


class ImageRecords(Protocol):
    """Where records are kept. `put` and `delete` return when the change survives a power cut."""

    def load(self) -> list[dict[str, Any]]:
        """All records."""
        ...

    async def put(self, image_id: str, record: dict[str, Any]) -> None:
        """Stores one."""
        ...

    async def delete(self, image_id: str) -> None:
        """Forgets one."""
        ...


class ImageIndex:
    """All images. Reads never wait; each change is one record at a time, memory after disk."""

    def __init__(self, records: ImageRecords, pinned: Sequence[str]) -> None:
        self._records = records
        self._pinned = pinned
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._removed: dict[str, Image] = {}
        self._changing = asyncio.Lock()
        """Held from the look at a record to its change: what was awaited in between has changed others' records too."""

    def load(self) -> None:
        """Reads the records."""
        for record in self._records.load():
            try:
                image = Image.from_record(record)
            except (KeyError, TypeError, ValueError) as error:
                log.error("image record cannot be read: pull the image again", record=record, error=repr(error))
                continue
            if image.removed:
                self._removed[image.id] = image
            else:
                self._show(image)

    def all(self) -> list[Image]:
        """Every image, in the order in which they came."""
        return list(self._images.values())

    def get(self, image_id: str) -> Image | None:
        """An image by its whole id."""
        return self._images.get(image_id)

    def resolve(self, text: str) -> Image | None:
        """An image by id, unique start of an id, tag or digest reference, however it is written."""
        if image := self._images.get(text) or self._images.get(f"sha256:{text}"):
            return image
        reference = try_parse(text)
        if reference is not None and (image_id := self._names.get(str(reference))):
            return self._images[image_id]
        prefix = id_prefix(text)
        if prefix is None:
            return None
        found = [image for image_id, image in self._images.items() if image_id.startswith(f"sha256:{prefix}")]
        return found[0] if len(found) == 1 else None

    async def add(self, image: Image) -> Image:
        """Stores an image, or adds the names of this one to the image that has its id; its tags leave other images.

        The names move last: a crash in between leaves a tag on two records, and the younger record wins at the start.
        """
        async with self._changing:
            return await self._add(image)

    async def name(self, image: Image) -> Image:
        """As `add`, for an image that has to be here still; NOT_FOUND where it has been removed meanwhile."""
        async with self._changing:
            if image.id not in self._images:
                raise not_found(f"image {image.id} has been removed meanwhile")
            return await self._add(image)

    async def _add(self, image: Image) -> Image:
        known = self._images.get(image.id)
        if known is not None:
            image = _joined(known, image)
            if replace(image, created_at=known.created_at, pinned=known.pinned) == known:
                return known
        losers = {self._names[tag] for tag in image.repo_tags if self._names.get(tag, image.id) != image.id}
        # Also where the clock has been set back since: who came later is told by these times.
        latest = max((self._images[loser].created_at for loser in losers), default=0.0)
        image = replace(image, created_at=max(time.time(), math.nextafter(latest, math.inf)))
        self._removed.pop(image.id, None)
        await self._put(image)
        for loser in losers:
            old = self._images.get(loser)
            if old is not None:
                await self._put(replace(old, repo_tags=tuple(t for t in old.repo_tags if t not in image.repo_tags)))
        return self._images[image.id]

    async def untag(self, image: Image, name: str) -> None:
        """Takes one name from an image."""
        async with self._changing:
            now = self._images.get(image.id)
            if now is None:
                return
            tags = tuple(t for t in now.repo_tags if t != name)
            digests = tuple(d for d in now.repo_digests if d != name)
            await self._put(replace(now, repo_tags=tags, repo_digests=digests))

    def removed(self) -> list[Image]:
        """Images that are no longer shown, but whose layers containers use."""
        return list(self._removed.values())

    def get_removed(self, image_id: str) -> Image | None:
        """One of them by its whole id."""
        return self._removed.get(image_id)

    async def remove(self, image: Image, *, in_use: bool) -> None:
        """Forgets an image and all its names; with `in_use` its record stays, but it is no longer shown.

        An image that a pull has named since this was asked for, which `image` then is not any more, stays.
        """
        async with self._changing:
            if self._images.get(image.id) is not image:
                return
            if in_use:
                gone = replace(image, removed=True, repo_tags=(), repo_digests=())
                await self._records.put(image.id, gone.to_record())
                self._removed[image.id] = gone
            else:
                await self._records.delete(image.id)
            self._hide(image.id)

    async def forget(self, image: Image) -> None:
        """Forgets a removed image that nobody uses any more."""
        async with self._changing:
            if self._removed.pop(image.id, None) is not None and image.id not in self._images:
                await self._records.delete(image.id)

    async def _put(self, image: Image) -> None:
        names = {*image.repo_tags, *image.repo_digests}
        if not names >= image.other_annotations.keys():
            image = replace(image, other_annotations={n: v for n, v in image.other_annotations.items() if n in names})
        try:
            await self._records.put(image.id, image.to_record())
        except OSError as error:
            raise CrispError(Code.INTERNAL, f"storing the record of image {image.id}: {error}") from error
        self._show(image)

    def _show(self, image: Image) -> None:
        other = {tag: self._names.get(tag) for tag in image.repo_tags}
        for tag, owner in other.items():
            old = self._images.get(owner) if owner and owner != image.id else None
            if old is not None:
                if old.created_at > image.created_at:
                    image = replace(image, repo_tags=tuple(t for t in image.repo_tags if t != tag))
                else:
                    self._images[old.id] = replace(old, repo_tags=tuple(t for t in old.repo_tags if t != tag))
        self._hide_names(image.id)
        self._images[image.id] = replace(image, pinned=self._is_pinned(image))
        for name in (*image.repo_tags, *image.repo_digests):
            self._names[name] = image.id

    def _hide(self, image_id: str) -> None:
        self._hide_names(image_id)
        self._images.pop(image_id, None)

    def _hide_names(self, image_id: str) -> None:
        old = self._images.get(image_id)
        for name in (*old.repo_tags, *old.repo_digests) if old else ():
            if self._names.get(name) == image_id:
                del self._names[name]

    def _is_pinned(self, image: Image) -> bool:
        """A pattern is matched against every name, as written and normalised."""
        names = (*image.repo_tags, *image.repo_digests, image.id)
        for pattern in self._pinned:
            reference = try_parse(pattern)
            patterns = {pattern, str(reference)} if reference else {pattern}
            if any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns):
                return True
        return False


def _joined(known: Image, image: Image) -> Image:
    """An image that is here, with the names of one that has come: of the same configuration, by whatever manifest.

    The manifest of the newcomer counts for the image if nobody but its own repository knows it, or if it is the first of a
    registry's: an archive's says less. Otherwise what others see stays as it is, and its annotations are its own names'.
    """
    ours, theirs = _repositories(image), _repositories(known)
    annotated = dict(known.other_annotations)
    if not image.repo_digests or not theirs <= ours:
        for name in (*image.repo_tags, *image.repo_digests):
            if image.annotations == known.annotations:
                annotated.pop(name, None)
            elif image.repo_digests:
                annotated[name] = image.annotations
        kept = {name: getattr(known, name) for name in ("manifest", "top", "layers", "annotations", "size", "kind")}
        if not known.repo_digests and image.repo_digests:
            kept |= {"manifest": image.manifest, "top": image.top, "layers": image.layers, "size": image.size}
        image = replace(image, **kept)
    return replace(
        image,
        repo_tags=_union(known.repo_tags, image.repo_tags),
        repo_digests=_union(known.repo_digests, image.repo_digests),
        checked=_union(known.checked, image.checked)[-_MAX_CHECKED:],
        other_annotations=annotated,
    )


def _repositories(image: Image) -> set[str]:
    found = (try_parse(name) for name in (*image.repo_tags, *image.repo_digests))
    return {reference.name for reference in found if reference is not None}


def _union(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
