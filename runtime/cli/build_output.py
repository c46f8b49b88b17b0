"""`crisp build --output`: what is made of an image besides its record: an archive of it, or its files."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from runtime.cli.output import fail

if TYPE_CHECKING:
    from runtime.build.copying import Copier
    from runtime.build.session import Session

KINDS: Final = ("oci", "docker", "tar", "local")


@dataclass(frozen=True, slots=True)
class Output:
    """What is wanted, and where: a file, `-` for the standard output, or a directory."""

    kind: str
    dest: str

    @property
    def is_stream(self) -> bool:
        """It goes to the standard output."""
        return self.dest == "-"


def parse(text: str) -> Output:
    """type=oci|docker|tar|local,dest=PLACE; docker's short forms DIR and -. Ends the command for what is none."""
    if "=" not in text:
        return Output("tar", "-") if text == "-" else Output("local", text)
    named = dict(word.partition("=")[::2] for word in text.split(","))
    kind, dest = named.pop("type", ""), named.pop("dest", "")
    if kind in KINDS and not dest and kind != "local":
        dest = "-"
    if kind not in KINDS or not dest or named or (kind == "local" and dest == "-"):
        fail(f"--output {text}: not of the form type={'|'.join(KINDS)},dest=PLACE", 2)
    if dest == "-" and os.isatty(1):
        fail(f"--output {text}: an archive is not for a terminal: say dest=FILE", 2)
    return Output(kind, dest)


def write(output: Output, session: Session, copier: Copier, image_id: str, references: Sequence[str]) -> None:
    """Make it. `references` are the names that an archive gives the image."""
    if output.kind in ("oci", "docker"):
        archive(output, session, references or (image_id,))
        return
    with session.mounted(image_id) as tree:
        if output.kind == "local":
            _files(output.dest, copier, tree.directory)
        elif output.is_stream:
            with _standard_output() as file:
                _tar(tree.directory, file)
        else:
            with open(output.dest, "wb") as file:
                _tar(tree.directory, file)


def archive(output: Output, session: Session, references: Sequence[str]) -> None:
    """The daemon makes no file that is there already, and knows nothing of our descriptors: it writes a new one, which takes
    the place of a file, and is copied to all else, such as pipes and what links lead to."""
    from proto import admin_pb2 as admin  # noqa: PLC0415  --help needs no protobuf

    place = os.path.abspath(output.dest)
    copied = output.is_stream or (os.path.lexists(place) and not stat.S_ISREG(os.lstat(place).st_mode))
    path = os.path.join(session.scratch, "archive") if copied else f"{place}.{session.id}"
    try:
        with ExitStack() as stack:
            target = stack.enter_context(_standard_output()) if output.is_stream else None
            if copied and target is None:
                target = stack.enter_context(open(place, "wb"))  # before the work is done
            request = admin.ExportImagesRequest(references=references, path=path, format=output.kind)
            session.client.admin.ExportImages(request)
            if target is None:
                os.replace(path, place)
            else:
                shutil.copyfileobj(stack.enter_context(open(path, "rb")), target, 1 << 20)
                target.flush()
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _standard_output() -> IO[bytes]:
    """Not `sys.stdout`, which there is none of where it was closed from the beginning: to write is an error then."""
    return open(1, "wb", closefd=False)


def _files(place: str, copier: Copier, tree: str) -> None:
    """The image's files in a directory here, as our own."""
    from imagesvc.containerfile.errors import Place  # noqa: PLC0415
    from imagesvc.containerfile.instructions import Copy  # noqa: PLC0415
    from runtime.build.copying import Tree  # noqa: PLC0415

    os.makedirs(place, exist_ok=True)
    everything = Copy(at=Place("--output", 1), text="", sources=("/",), target="/")
    selection = copier.select(everything, Tree(tree, "the image", keep_owners=False))
    copier.put(selection, os.path.abspath(place), tree, "/")


def _tar(tree: str, target: IO[bytes]) -> None:
    """The image's files as an archive. The tree is read-only, and links in it are not followed."""

    def described(member: tarfile.TarInfo) -> tarfile.TarInfo:
        """Without this host's names of users; with capabilities and attributes, as GNU tar and docker write them."""
        member.uname = member.gname = ""
        path, attributes = os.path.join(tree, member.name), dict[str, str]()
        for name in os.listxattr(path, follow_symlinks=False):
            if name == "security.capability" or name.startswith("user."):
                value = os.getxattr(path, name, follow_symlinks=False)
                attributes[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
        member.pax_headers = attributes
        return member

    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for name in sorted(os.listdir(tree)):
            archive.add(os.path.join(tree, name), arcname=name, filter=described)
