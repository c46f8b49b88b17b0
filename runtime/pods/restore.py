"""Containers that are made out of checkpoints: what CreateContainer and StartContainer do otherwise for them.

    create   the checkpoint's files are copied ─▶ its image found ─▶ configurations merged ─▶ writable layer filled ─▶ shim
    start    the shim has the OCI runtime restore the process in the new sandbox ─▶ the files are removed

The files lie in `<writable layer>/restore/` (imagesvc/worker/checkpoint_files.py), CRIU's logs among them. They are
copies: whoever gave the checkpoint may remove it once the container is made, and nobody can change it between the look at
it and its use.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from imagesvc.store.images import Image
from imagesvc.worker import checkpoint_files
from kernel import removal
from proto.errors import CrispError, failed_precondition, invalid, not_found
from runtime.oci import restored_spec
from runtime.oci.json_fields import Fields
from runtime.pods import criu, criu_images

if TYPE_CHECKING:
    from collections.abc import Collection

    from imagesvc.service import ImageService
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.shims.client import Created

ANNOTATIONS: Final = ("io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name")
"""Either in an image's manifest says that the image is a checkpoint."""


CRIU_CONFIG: Final = "org.criu.config"
"""OCI annotation: a file of settings for CRIU. runc and crun look for it; without it they use `/etc/criu/<runtime>.conf`."""

DIRECTORY: Final = "restore"
"""Below the writable layer's."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are copied, with the image that its container was made of."""

    directory: Path
    spec: dict[str, Any]
    """Its OCI configuration, as restored_spec parses it."""
    image: Image
    image_name: str
    exact: bool
    """Whether the request must describe the very process that was checkpointed."""
    origin: str
    """What was named: a path, or an image's id. Containers of one pod's checkpoint have its directory in common."""


def origin(node: Node, image: str, asked: str = "") -> str | Image | None:
    """The checkpoint that is named in place of an image: an archive's absolute path, or an image of one; None if none is.

    `asked` is what the pod's author has written, where `image` is an id. FAILED_PRECONDITION where the administrator has not
    allowed it.
    """
    found = node.images.resolve(image)
    marked = found is not None and any(name in found.annotations_of(image, asked) for name in ANNOTATIONS)
    if not marked and not image.startswith("/"):
        return None
    if not node.config.containers.restore_checkpoints:
        raise failed_precondition(
            f"{image} is a checkpoint, and containers.restore_checkpoints in crisp.toml does not allow this node to "
            "restore containers from one"
        )
    return found if marked else image


async def stage(node: Node, container_id: str, source: str | Image, expected: Image | None) -> Checkpoint:
    """Copy a checkpoint's files and find its image; the caller has them removed by `drop` if nothing comes of it.

    `expected` is the image that it must have been made of; without it the image is found by what the checkpoint says, and
    pulled if it is not here.
    """
    criu.require()
    directory = node.paths.writable_layer(container_id) / DIRECTORY
    directory.parent.mkdir(mode=0o700, parents=True)
    await node.images.take_checkpoint(source, str(directory))
    loop = asyncio.get_running_loop()
    config, spec = await loop.run_in_executor(node.blocking, _documents, directory)
    fields = Fields(config, checkpoint_files.CONFIG)
    names = [fields.text(key) for key in ("rootfsImageName", "rootfsImage")]
    name = next((name for name in names if name), "")
    image = await _image(node.images, fields.text("rootfsImageRef"), name, expected)
    return Checkpoint(
        directory=directory,
        spec=restored_spec.parse(spec),
        image=image,
        image_name=name or image.id,
        exact=expected is not None,
        origin=source.id if isinstance(source, Image) else os.path.dirname(source) if expected is not None else source,
    )


def _documents(directory: Path) -> tuple[Any, Any]:
    found = []
    for name in (checkpoint_files.CONFIG, checkpoint_files.SPEC):
        try:
            found.append(json.loads((directory / name).read_bytes()))
        except (ValueError, RecursionError) as error:
            raise invalid(f"the checkpoint's {name} is not JSON: {error}") from None
    return found[0], found[1]


async def _image(images: ImageService, reference: str, name: str, expected: Image | None) -> Image:
    """The image by the checkpoint's reference, which is exact; else by its name, if that still means the same."""
    image = images.resolve(reference) if reference else None
    if image is None and name and (image := images.resolve(name)) is None and expected is None:
        try:
            image = images.resolve(await images.pull(name))
        except CrispError as error:
            raise CrispError(
                error.code, f"the checkpoint was made of image {name}, which is not here: {error.message}"
            ) from None
    if image is None:
        raise not_found(
            f"the checkpoint was made of image {name or reference or '(it does not say which)'}, which is not here"
        )
    if reference and not _means(reference, image):
        raise failed_precondition(f"the checkpoint was made of image {reference}; {name} is now {image.id}")
    if expected is not None and image.id != expected.id:
        raise failed_precondition(f"the checkpoint was made of image {image.id}, and the request names {expected.id}")
    return image


def _means(reference: str, image: Image) -> bool:
    """Whether an exact reference (an id, or a name with a digest) is this image's; a mere name is never wrong."""
    digest = reference.rpartition("@")[2]
    if "@" in reference:
        return reference in image.repo_digests or digest in (image.id, image.manifest, image.top)
    hexadecimal = digest.removeprefix("sha256:")
    return len(hexadecimal) != len(image.id.removeprefix("sha256:")) or image.id.endswith(hexadecimal)


async def drop(node: Node, container_id: str) -> None:
    """Remove the files of a checkpoint of which no container was made."""
    await _remove(node, node.paths.writable_layer(container_id))


async def _remove(node: Node, directory: Path) -> None:
    await asyncio.get_running_loop().run_in_executor(node.blocking, removal.discard_tree, directory)


def described(checkpoint: Checkpoint) -> Image:
    """The image as it describes the container: where the request need not, the checkpoint says what runs and as whom."""
    if checkpoint.exact:
        return checkpoint.image
    process = checkpoint.spec["process"]
    user = "{uid}:{gid}".format(**process["user"])
    config = replace(checkpoint.image.config, entrypoint=tuple(process["args"]), cmd=(), user=user)
    return replace(checkpoint.image, config=config)


async def prepare(
    node: Node, container: Container, checkpoint: Checkpoint, document: dict[str, Any], mounts: Collection[str]
) -> dict[str, Any]:
    """The OCI configuration with the checkpoint's process in it; the writable layer gets the checkpoint's files.

    `mounts` are the container paths of what NRI plugins mount: as the client's, they must have been there.
    """
    if checkpoint.exact and (found := restored_spec.differences(document, checkpoint.spec)):
        raise failed_precondition(f"the request is not for the process that was checkpointed: {', '.join(found)} differ")
    clients = [mount.container_path for mount in container.record.config.mounts] + list(mounts)
    merged = restored_spec.merge(document, checkpoint.spec, clients)
    settings = checkpoint.directory / "criu.conf"
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(node.blocking, _write_settings, node, container, settings)
    if any(namespace["type"] == "uts" for namespace in merged["linux"]["namespaces"]):
        hostname = container.sandbox.record.hostname()
        images = checkpoint.directory / checkpoint_files.IMAGES
        await loop.run_in_executor(node.blocking, criu_images.set_hostname, images, hostname)
    merged["annotations"][CRIU_CONFIG] = str(settings)
    diff, deleted = (checkpoint.directory / name for name in (checkpoint_files.DIFF, checkpoint_files.DELETED))
    if diff.exists():
        upper = node.paths.writable_layer(container.record.id) / "upper"
        lower = node.images.lower_dirs(checkpoint.image)
        await node.images.apply_changes(str(diff), str(deleted) if deleted.exists() else "", str(upper), lower)
        diff.unlink()
    return merged


def _write_settings(node: Node, container: Container, path: Path) -> None:
    """Settings for CRIU, beside those that the OCI runtime gives it and those of the node's administrator."""
    program = os.path.basename(node.handlers.get(container.sandbox.record.handler).path)
    try:
        text = Path("/etc/criu", f"{program}.conf").read_text()
    except OSError:
        text = ""
    if node.host.cgroup_v2:
        # runc tells CRIU of the new cgroup on v1 only; left alone, CRIU makes the old one anew.
        text += f"\ncgroup-root /{container.record.cgroup.strip('/')}\n"
    path.write_text(text)


def places(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the shim finds CRIU's images, and has its logs written."""
    return {"images": str(checkpoint.directory / checkpoint_files.IMAGES), "work": str(checkpoint.directory)}


def check_user(checkpoint: Checkpoint, made: Created) -> None:
    """The request's user, as found in the root file system, must be the one whom the process runs as."""
    before = checkpoint.spec["process"]["user"]
    if (before["uid"], before["gid"]) != (made.uid, made.gid):
        raise failed_precondition(
            f"the checkpoint's process runs as {before['uid']}:{before['gid']}, and is to run as {made.uid}:{made.gid}"
        )


async def begin(node: Node, container: Container) -> None:
    """Before the restore. The caller holds the sandbox's lock.

    The IPC objects of the pod are in the checkpoint of each of its containers; the first that is restored brings them back.
    """
    origin = container.record.restored_from
    others = [other.record for other in container.sandbox.containers.values() if other is not container]
    if any(other.restored_from == origin and other.started_at for other in others):
        images = node.paths.writable_layer(container.record.id) / DIRECTORY / checkpoint_files.IMAGES
        await asyncio.get_running_loop().run_in_executor(node.blocking, criu_images.empty_ipc, images)


async def explained(node: Node, container: Container, error: CrispError) -> CrispError:
    """A failed restore with what CRIU says of it."""
    log = node.paths.writable_layer(container.record.id) / DIRECTORY / "restore.log"
    unsaid = f"was {container.record.handler} built with CRIU?"
    reason = await asyncio.get_running_loop().run_in_executor(node.blocking, criu.reason, log, unsaid)
    text = f"container {container.record.id} cannot be restored: {error.message.splitlines()[0]}"
    return failed_precondition(f"{text}: {reason}" if reason else text)


async def finish(node: Node, container: Container) -> None:
    """The process runs: the checkpoint's files have served."""
    if container.shim is not None:
        try:
            container.record.pid = (await container.shim.state())["pid"]
        except CrispError:
            pass  # it has ended already
    await remove_files(node, container)


async def remove_files(node: Node, container: Container) -> None:
    """Remove the copies of the checkpoint's files."""
    await _remove(node, node.paths.writable_layer(container.record.id) / DIRECTORY)
