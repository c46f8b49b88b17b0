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
from imagesvc.tar.header import TarError
from imagesvc.tar.inflate import InflateError
from proto.errors import invalid
from runtime.build import archives, unpacking
from runtime.build.shut_in import open_regular

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
        return Context(argument, _rules(argument, ""), _bounded(stdin, "the standard input"), "Containerfile")
    if containerfile is None:
        path, name = _default(argument)
    else:
        path = name = containerfile
    return Context(argument, _rules(argument, path), _read(path, name), name)


def _from_stream(containerfile: str | None, stdin: IO[bytes], scratch: str) -> Context:
    """An archive, or a Containerfile alone."""
    stream = archives.Peeked(stdin)
    try:
        if not archives.is_archive(stream):
            if containerfile is not None:
                raise invalid("what is on the standard input is no archive, so there is no file for -f in it")
            return Context("", IgnoreRules(), _bounded(stream, "the standard input"), "Containerfile")
        unpacking.unpack(stream, scratch)
    except (TarError, InflateError) as error:
        raise invalid(f"the archive on the standard input: {error}") from None
    if containerfile is None:
        path, name = _default(scratch)
    else:
        path, name = os.path.join(scratch, os.path.normpath("/" + containerfile).lstrip("/")), containerfile
    return Context(scratch, _rules(scratch, path), _read(path, name), name)


def _default(root: str) -> tuple[str, str]:
    for name in NAMES:
        path = os.path.join(root, name)
        if os.path.lexists(path):
            return path, name
    raise invalid(f"there is no {' and no '.join(NAMES)} in the context: name one by -f FILE")


def _read(path: str, name: str) -> bytes:
    try:
        real = os.path.realpath(path)
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise invalid(f"{name} is no file")
        with open_regular(real) as file:
            return _bounded(file, name)
    except (FileNotFoundError, NotADirectoryError):
        raise invalid(f"there is no Containerfile {name}") from None


def _bounded(stream: IO[bytes] | archives.Peeked, name: str) -> bytes:
    pieces, size = [], 0
    while piece := stream.read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise invalid(f"{name} has more than {MAX_BYTES} bytes, which no Containerfile has")
    return b"".join(pieces)


def _rules(root: str, containerfile: str) -> IgnoreRules:
    beside = [containerfile + suffix for suffix in _IGNORE_SUFFIXES] if containerfile else []
    for path in (*beside, *(os.path.join(root, suffix) for suffix in _IGNORE_SUFFIXES)):
        if os.path.isfile(path):
            name = os.path.basename(path)
            try:
                return ignore.parse(_read(path, name).decode(errors="surrogateescape"), name)
            except FileNotFoundError:
                continue
    return IgnoreRules()
