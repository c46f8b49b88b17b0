"""The context of a build: a directory, or an archive or a Containerfile on the standard input.

    DIR                  the directory; the Containerfile is DIR/Containerfile or DIR/Dockerfile, or what -f names
    -                    an archive (gzip, bzip2, xz, zstd, or not), unpacked into the scratch directory; or a file
    DIR with -f -        the directory, and the Containerfile from the standard input

The ignore file is the first of FILE.containerignore, FILE.dockerignore (beside the Containerfile), .containerignore and
.dockerignore (at the context's root).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import IO, Final

from imagesvc.containerfile import ignore
from imagesvc.containerfile.ignore import IgnoreRules
from imagesvc.containerfile.lines import MAX_BYTES
from kernel import syscalls
from proto.errors import invalid
from runtime.build import archives, unpacking

NAMES: Final = ("Containerfile", "Dockerfile")
_IGNORE_SUFFIXES: Final = (".containerignore", ".dockerignore")
_REMOTE: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*://|git@|github\.com/)", re.IGNORECASE)


@dataclass(frozen=True)
class Context:
    """What a build is made of."""

    root: str
    """A directory; empty if there is none, for all that came was a Containerfile."""
    rules: IgnoreRules
    text: bytes
    """The Containerfile."""
    name: str
    """What it is called in messages."""


def open_context(argument: str, containerfile: str | None, stdin: IO[bytes], scratch: str) -> Context:
    """Finds the context, its Containerfile and its ignore file; INVALID_ARGUMENT for what is none.

    Args:
        argument: the command's argument, a directory or `-`.
        containerfile: -f, None for the default one; `-` is the standard input.
        stdin: the standard input.
        scratch: an empty directory, for a context that is unpacked.

    Raises:
        CrispError: what is wrong and what would be right.
        OSError: a file cannot be read.
    """
    if argument == "-":
        if containerfile == "-":
            raise invalid("the context and the Containerfile cannot both come from the standard input")
        return _from_stream(containerfile, stdin, scratch)
    if _REMOTE.match(argument) and not os.path.isdir(argument):
        raise invalid(
            f"{argument} is not here: crisp builds from a directory, or from an archive on the standard input (-); "
            "clone or download it first"
        )
    if not os.path.isdir(argument):
        raise invalid(f"the context {argument} is no directory; it is to be one, or - for an archive on the standard input")
    if containerfile == "-":
        return Context(argument, _rules(argument, None), _bounded(stdin, "the standard input"), "Containerfile")
    return _of_directory(argument, _default(argument) if containerfile is None else _File("", containerfile, containerfile))


@dataclass(frozen=True)
class _File:
    """A path below a root, out of which no link leads; or as the user has it, if the root is empty."""

    root: str
    path: str
    name: str

    def open(self, suffix: str = "") -> IO[bytes]:
        path, flags = self.path + suffix, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        if self.root:
            root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                descriptor = syscalls.openat2(root, path, flags, syscalls.RESOLVE_IN_ROOT)
            finally:
                os.close(root)
        else:
            descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise invalid(f"{self.name}{suffix} is no file")
        return os.fdopen(descriptor, "rb")


def _of_directory(root: str, file: _File) -> Context:
    try:
        with file.open() as stream:
            text = _bounded(stream, file.name)
    except (FileNotFoundError, NotADirectoryError):
        raise invalid(f"there is no Containerfile {file.name}") from None
    return Context(root, _rules(root, file), text, file.name)


def _from_stream(containerfile: str | None, stdin: IO[bytes], scratch: str) -> Context:
    """An archive, or a Containerfile alone."""
    stream = archives.Peeked(stdin)
    if not archives.is_archive(stream):
        if containerfile is not None:
            raise invalid("what is on the standard input is no archive, so there is no file for -f in it")
        return Context("", IgnoreRules(), _bounded(stream, "the standard input"), "Containerfile")
    unpacking.unpack(stream, scratch)
    if containerfile is None:
        return _of_directory(scratch, _default(scratch))
    return _of_directory(scratch, _File(scratch, containerfile, containerfile))


def _default(root: str) -> _File:
    for name in NAMES:
        if os.path.lexists(os.path.join(root, name)):
            return _File(root, name, name)
    raise invalid(f"there is no {' and no '.join(NAMES)} in the context: name one by -f FILE")


def _bounded(stream: archives.Stream, name: str) -> bytes:
    pieces, size = [], 0
    while piece := stream.read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise invalid(f"{name} has more than {MAX_BYTES} bytes, which no Containerfile has")
    return b"".join(pieces)


def _rules(root: str, containerfile: _File | None) -> IgnoreRules:
    beside = [(containerfile, suffix) for suffix in _IGNORE_SUFFIXES] if containerfile else []
    for file, suffix in (*beside, *((_File(root, "", ""), suffix) for suffix in _IGNORE_SUFFIXES)):
        name = os.path.basename(file.path) + suffix
        try:
            with file.open(suffix) as stream:
                text = _bounded(stream, name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return ignore.parse(text.decode(errors="surrogateescape"), name)
    return IgnoreRules()
