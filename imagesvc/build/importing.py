"""Importing images from archives: OCI layouts (a directory or a tar of one) and `docker save`'s format.

    index.json, oci-layout, blobs/sha256/<hex>        OCI image-layout.md; names in annotations
    manifest.json, <hex>.json, <id>/layer.tar         docker-archive; digests by the configuration's diff ids

An archive in a file is not copied: blobs are unpacked from where they lie in it. One that is compressed as a whole is
inflated beside the downloads first. Every digest is checked, as in a pull.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from imagesvc import manifests
from imagesvc.disk_errors import disk_error
from imagesvc.limits import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, MIB
from imagesvc.manifests import Descriptor, Manifest
from imagesvc.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from imagesvc.platforms import Platform, choose
from imagesvc.references import Reference, check_digest, parse_reference, try_parse
from imagesvc.store.content import digest_of
from imagesvc.tar import inflate
from imagesvc.transfer.archived import ArchivedImage
from proto.errors import Code, CrispError, invalid

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAMES = ("io.containerd.image.name", _REF_NAME)
_READ = 1 * MIB


@dataclass(frozen=True)
class Place:
    """A stretch of a file. Bytes."""

    path: str
    offset: int
    size: int


class Archive:
    """An opened archive. All methods block, but for `hold`."""

    def __init__(self, path: str, scratch: str) -> None:
        """`scratch` is the name of a file that may be made, for archives that are compressed as a whole."""
        self._path = path
        self._scratch = scratch
        try:
            self._members = _directory(path) if os.path.isdir(path) else self._index()
        except tarfile.TarError as error:
            raise invalid(f"{path} is no archive of images: {error}") from None
        except FileNotFoundError:
            raise invalid(f"there is no file {path}") from None
        except OSError as error:
            raise disk_error(error, path, "reading an archive") from error
        self._by_digest: dict[str, Place] = {}

    def close(self) -> None:
        """Removes the scratch file, if one was needed."""
        try:
            os.unlink(self._scratch)
        except FileNotFoundError:
            pass

    def _index(self) -> dict[str, Place]:
        path = self._path
        with open(path, "rb") as stream:
            plain = stream.read(262)[257:] == b"ustar"
        if not plain:
            _inflate(path, self._scratch)
            path = self._scratch
        with tarfile.open(path, "r:") as archive:
            return {
                os.path.normpath(member.name): Place(path, member.offset_data, member.size) for member in _resolved(archive)
            }

    def images(self, platform: Platform, base_name: str = "") -> list[ArchivedImage]:
        """What the archive has. `base_name` names images that have no name, or only a tag."""
        if "index.json" in self._members:
            return self._oci(platform, base_name)
        if "manifest.json" in self._members:
            return [self._docker(entry, base_name) for entry in self._json("manifest.json")]
        raise invalid(f"{self._path} has neither index.json nor manifest.json: it is no archive of images")

    def _oci(self, platform: Platform, base_name: str) -> list[ArchivedImage]:
        index = self._json("index.json")
        entries = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(entries, list):
            raise invalid(f"{self._path}: index.json lists no manifests")
        docker_names = self._docker_names()
        found = []
        for entry in entries:
            digest = check_digest(str(entry.get("digest") or ""), f"{self._path}: index.json")
            documents = {digest: self._document(digest)}
            top = digest
            document = manifests.parse_manifest(documents[digest], digest, str(entry.get("mediaType") or ""))
            while isinstance(document, manifests.Index):
                digest = choose(document.manifests, platform, f"{self._path}: {digest}").digest
                documents[digest] = self._document(digest)
                document = manifests.parse_manifest(documents[digest], digest)
            config = self._document(document.config.digest)
            documents[document.config.digest] = config
            names = _names(entry.get("annotations") or {}, base_name) or docker_names.get(document.config.digest, ())
            if not names:
                raise invalid(f"{self._path} does not say what its image {top} is called: give a name")
            for layer in document.layers:
                self._by_digest[layer.digest] = self._place(_blob_name(layer.digest))
            found.append(ArchivedImage(names, top, digest, document, config, documents, from_registry=True))
        return found

    def _docker_names(self) -> dict[str, tuple[Reference, ...]]:
        """`docker save` of Docker 25 writes both formats, and the names into the older one alone."""
        if "manifest.json" not in self._members:
            return {}
        return {
            digest_of(self._read(str(entry["Config"]), MAX_CONFIG_BYTES)): tuple(
                parse_reference(tag) for tag in entry.get("RepoTags") or ()
            )
            for entry in self._json("manifest.json")
        }

    def _docker(self, entry: Mapping[str, Any], base_name: str) -> ArchivedImage:
        config = self._read(str(entry.get("Config") or ""), MAX_CONFIG_BYTES)
        image_id = digest_of(config)
        document = manifests.parse_config(config, image_id)
        files = entry.get("Layers") or []
        if len(files) != len(document.diff_ids):
            raise invalid(f"{self._path}: image {image_id} has {len(files)} layers, its configuration another number")
        layers = []
        for file, diff_id in zip(files, document.diff_ids, strict=True):
            place = self._place(str(file))
            self._by_digest[diff_id] = place
            layers.append({"mediaType": OCI_LAYER, "digest": diff_id, "size": place.size})
        made = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": image_id, "size": len(config)},
            "layers": layers,
        }
        raw = json.dumps(made, separators=(",", ":")).encode()
        digest = digest_of(raw)
        manifest = manifests.parse_manifest(raw, digest)
        assert isinstance(manifest, Manifest)
        names = tuple(parse_reference(tag) for tag in entry.get("RepoTags") or ())
        if not names and not base_name:
            raise invalid(f"{self._path} does not say what its image {image_id} is called: give a name")
        return ArchivedImage(
            names=names or (parse_reference(base_name),),
            top=digest,
            digest=digest,
            manifest=manifest,
            config=config,
            documents={digest: raw, image_id: config},
            from_registry=False,
        )

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._read(name, MAX_MANIFEST_BYTES))
        except (ValueError, RecursionError) as error:
            raise invalid(f"{self._path}: {name} is not JSON: {error}") from None

    def _document(self, digest: str) -> bytes:
        raw = self._read(_blob_name(digest), MAX_CONFIG_BYTES)
        actual = digest_of(raw, digest)
        if actual != digest:
            raise CrispError(Code.ABORTED, f"{self._path}: blob {digest} has the digest {actual}")
        return raw

    def _read(self, name: str, limit: int) -> bytes:
        place = self._place(name)
        if place.size > limit:
            raise CrispError(Code.RESOURCE_EXHAUSTED, f"{self._path}: {name} has more than {limit} bytes")
        with open(place.path, "rb") as stream:
            return os.pread(stream.fileno(), place.size, place.offset)

    def _place(self, name: str) -> Place:
        place = self._members.get(os.path.normpath(name))
        if place is None:
            raise invalid(f"{self._path} has no {name[:200]!r}, which its manifest names")
        return place

    def holder(self, executor: Executor) -> Callable[[Descriptor], Any]:
        """What LayerWork takes blobs from."""

        @asynccontextmanager
        async def hold(descriptor: Descriptor) -> AsyncIterator[StoredBlob]:
            blob = StoredBlob(self._by_digest[descriptor.digest], descriptor, executor)
            try:
                yield blob
            finally:
                await asyncio.wait([blob.done])
                blob.done.exception()

        return hold


class StoredBlob:
    """A blob in a file of this node: an unpacking.Incoming that is all there from the start."""

    def __init__(self, place: Place, descriptor: Descriptor, executor: Executor) -> None:
        self.key: Hashable = (place.path, place.offset, place.size)
        self.path = place.path
        self.offset = place.offset
        self.size = place.size
        self.digest = descriptor.digest
        self.restarts = 0
        self.started = asyncio.Event()
        self.started.set()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().run_in_executor(executor, self._verify, descriptor)

    def follow(self, callback: Callable[[int], None]) -> None:
        """Everything is available at once."""
        callback(self.size)

    def unfollow(self, callback: Callable[[int], None]) -> None:
        """Nothing more would have come."""

    def _verify(self, descriptor: Descriptor) -> None:
        """A docker-archive's layer may be compressed; then the diff id alone, which the unpacker checks, is its digest."""
        algorithm, _, expected = descriptor.digest.partition(":")
        digest = hashlib.new(algorithm)
        with open(self.path, "rb") as stream:
            position, end = self.offset, self.offset + self.size
            first = os.pread(stream.fileno(), 6, position)
            if descriptor.media_type == OCI_LAYER and inflate.is_compressed(first):
                return
            while position < end:
                chunk = os.pread(stream.fileno(), min(_READ, end - position), position)
                if not chunk:
                    raise CrispError(Code.ABORTED, f"archive {self.path} ends in the middle of blob {self.digest}")
                digest.update(chunk)
                position += len(chunk)
        if digest.hexdigest() != expected:
            raise CrispError(
                Code.ABORTED, f"blob {self.digest} in {self.path} is corrupt: its digest is {digest.hexdigest()}"
            )


def _resolved(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Regular members; links, by which `docker save` shares layers, as what they lead to."""
    found = []
    members = archive.getmembers()
    by_name = {os.path.normpath(member.name): member for member in members}
    for member in members:
        target: tarfile.TarInfo | None = member
        if member.issym():
            target = by_name.get(os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname)))
        elif member.islnk():
            target = by_name.get(os.path.normpath(member.linkname))
        if target is not None and target.isreg():
            named = tarfile.TarInfo(member.name)
            named.offset_data, named.size = target.offset_data, target.size
            found.append(named)
    return found


def _directory(path: str) -> dict[str, Place]:
    members = {}
    for parent, _directories, files in os.walk(path):
        for name in files:
            full = os.path.join(parent, name)
            members[os.path.relpath(full, path)] = Place(full, 0, os.stat(full).st_size)
    return members


def _names(annotations: Mapping[str, Any], base_name: str) -> tuple[Reference, ...]:
    """The names of an entry of index.json: a whole reference, or a tag of the base name."""
    for key in _FULL_NAMES:
        value = str(annotations.get(key) or "")
        if "/" in value or ":" in value:
            reference = try_parse(value)
            if reference is not None:
                return (reference,)
    if not base_name:
        return ()
    base = parse_reference(base_name)
    tag = str(annotations.get(_REF_NAME) or "")
    explicit = base_name.rfind(":") > base_name.rfind("/")
    return (base if explicit or not tag else parse_reference(f"{base.name}:{tag}"),)


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _inflate(source: str, target: str) -> None:
    try:
        with open(source, "rb") as stream, open(target, "xb") as out:
            reader = inflate.open_reader(lambda: stream.read(_READ))
            while piece := reader.read():
                out.write(piece)
    except inflate.InflateError as error:
        raise invalid(f"{source}: {error}") from None
