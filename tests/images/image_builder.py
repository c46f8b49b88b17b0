"""Builds images for the tests: layers as tar bytes, images as an OCI layout that skopeo pushes to a registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image"


@dataclass
class Member:
    """One tar entry; `data` makes a file of whatever type is the default."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    mtime: float = 1_700_000_000
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, **more: Any) -> Member:
    return Member(name, type=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> Member:
    return Member(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> Member:
    return Member(name, type=tarfile.LNKTYPE, link=target)


def tar(members: list[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    """The members in order, as they are: nothing is added or sorted."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type = member.type
            info.mode, info.uid, info.gid, info.mtime = member.mode, member.uid, member.gid, member.mtime
            info.linkname = member.link
            info.devmajor, info.devminor = member.device
            info.size = len(member.data) if member.type == tarfile.REGTYPE else 0
            info.pax_headers = {
                f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in member.xattrs.items()
            }
            archive.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def busybox(*more: Member) -> bytes:
    """A layer that can run: /bin/busybox and links to it."""
    binary = Path("/bin/busybox").read_bytes()
    applets = ("sh", "echo", "cat", "ls", "sleep", "id", "true", "false", "mkdir", "rm")
    return tar(
        [
            directory("./"),
            directory("bin/"),
            Member("bin/busybox", binary, mode=0o755),
            *(symlink(f"bin/{applet}", "busybox") for applet in applets),
            directory("etc/"),
            Member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            directory("tmp/", 0o1777),
            *more,
        ]
    )


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An OCI layout on disk. Images get a tag in it; `push` copies one to a registry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifests: list[dict[str, Any]] = []
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        digest = sha256(data)
        (self.path / "blobs/sha256" / digest[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def layer(self, tar_bytes: bytes, compression: str = "gzip") -> dict[str, Any]:
        if compression == "gzip":
            return self.blob(gzip.compress(tar_bytes, 1, mtime=0), f"{OCI}.layer.v1.tar+gzip")
        if compression == "zstd":
            return self.blob(zstandard.ZstdCompressor(3).compress(tar_bytes), f"{OCI}.layer.v1.tar+zstd")
        return self.blob(tar_bytes, f"{OCI}.layer.v1.tar")

    def image(
        self,
        tag: str,
        layers: list[bytes],
        config: dict[str, Any] | None = None,
        compression: str = "gzip",
        architecture: str = "amd64",
    ) -> str:
        """Adds an image of uncompressed layers; returns its manifest's digest."""
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        described = self.blob(json.dumps(document).encode(), f"{OCI}.config.v1+json")
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": described,
            "layers": [self.layer(layer, compression) for layer in layers],
        }
        return self.add(tag, self.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json"))

    def index(self, tag: str, entries: list[tuple[str, str]]) -> str:
        """Adds an index of manifests given as (digest, "os/architecture[/variant]")."""
        manifests = []
        for digest, platform in entries:
            parts = platform.split("/")
            described = {"os": parts[0], "architecture": parts[1]} | ({"variant": parts[2]} if len(parts) > 2 else {})
            size = (self.path / "blobs/sha256" / digest[7:]).stat().st_size
            manifests.append({"mediaType": f"{OCI}.manifest.v1+json", "digest": digest, "size": size, "platform": described})
        document = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
        return self.add(tag, self.blob(json.dumps(document).encode(), f"{OCI}.index.v1+json"))

    def add(self, tag: str, descriptor: dict[str, Any]) -> str:
        self._manifests = [m for m in self._manifests if m["annotations"]["org.opencontainers.image.ref.name"] != tag]
        self._manifests.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}})
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.path / "index.json").write_text(json.dumps(index))
        digest: str = descriptor["digest"]
        return digest

    def push(self, tag: str, target: str, *options: str) -> None:
        """Copies an image as it is (`target` without scheme, over plain HTTP)."""
        options = ("--dest-tls-verify=false", "--insecure-policy", "-q", *options)
        subprocess.run(
            ["skopeo", "copy", "--all", "--preserve-digests", *options, f"oci:{self.path}:{tag}", f"docker://{target}"],
            check=True,
            capture_output=True,
            text=True,
        )
