"""What COPY and ADD select in a tree. It runs in a process whose root is that tree, so names and links stay in it.

a file                 under its own name          a directory     what is in it
a pattern              everything that fits        --parents       under the path, from /./ on if that is in it
a symbolic link        what it leads to; one that is found in a directory stays a link
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from imagesvc.containerfile import ignore
from imagesvc.containerfile.ignore import IgnoreRules
from imagesvc.containerfile.instructions import Add, Copy
from imagesvc.containerfile.patterns import PathPattern, PatternError
from imagesvc.tar import tar_stream, tar_writer
from imagesvc.tar.tar_stream import Entry
from runtime.build import archives, permissions
from runtime.build.shut_in import open_regular

URLS: Final = ("http://", "https://")
_READ: Final = 1 << 18
_TYPES: Final = {
    stat.S_IFREG: tar_stream.REGULAR,
    stat.S_IFDIR: tar_stream.DIRECTORY,
    stat.S_IFLNK: tar_stream.SYMLINK,
    stat.S_IFCHR: tar_stream.CHAR,
    stat.S_IFBLK: tar_stream.BLOCK_DEVICE,
    stat.S_IFIFO: tar_stream.FIFO,
}
_ATTRIBUTES: Final = ("user.", "security.capability", "system.posix_acl_")


class SelectionError(Exception):
    """Why nothing can be selected."""


class _NothingFits(SelectionError):
    """A pattern, and no file for it."""


@dataclass(frozen=True)
class Item:
    """One thing to be copied."""

    kind: str
    """file, directory or archive."""
    path: str
    """In the tree, from its root, links resolved."""
    name: str
    """What it is called in the target; empty for what is in a directory or archive."""


@dataclass
class View:
    """A tree as an instruction sees it."""

    what: str
    rules: IgnoreRules
    keep_owners: bool
    excludes: IgnoreRules = field(default_factory=IgnoreRules)
    change: permissions.Change | None = None
    links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """Names of files that have several, as they have been told."""


def view_of(step: Copy, what: str, rules: IgnoreRules, keep_owners: bool) -> View:
    """Raises ContainerfileError where --exclude or --chmod are not what they are to be."""
    change = permissions.parse(step.chmod) if step.chmod else None
    if step.chmod and change is None:
        raise step.error(f"--chmod={step.chmod}: it is to be octal, like 755, or like u=rwX,go=rX")
    return View(what, rules, keep_owners, ignore.excludes(step.excludes, step.at, step.keyword), change)


def find(step: Copy, view: View) -> list[Item]:
    """Everything that the sources of an instruction mean, in their order. Raises SelectionError.

    A pattern that nothing fits is an error only where there is nothing else: `COPY package.json yarn.lock* ./`.
    """
    found: dict[Item, None] = {}
    nothing: list[str] = []
    for source in step.sources:
        if isinstance(step, Add) and source.startswith(URLS):
            continue
        try:
            paths = _matches(source, view)
        except _NothingFits as error:
            nothing.append(str(error))
            continue
        for path in paths:
            item = _item(step, source, path, view)
            if item is not None:
                found.setdefault(item)
    if nothing and len(nothing) == len(step.sources) and not step.heredocs:
        raise SelectionError(", and ".join(nothing))
    return list(found)


def _matches(source: str, view: View) -> list[str]:
    """Paths that a source means, relative to the root; "" is the root."""
    if posixpath.normpath(source.lstrip("/") or ".").split("/")[0] == "..":
        raise SelectionError(f"{source} is outside of {view.what}: only what is in it can be copied")
    try:
        pattern = PathPattern(source)
    except PatternError as error:
        raise SelectionError(str(error)) from None
    if not pattern.wild:
        path = "/".join(component.name or "" for component in pattern.components)
        if not os.path.lexists("/" + path):
            raise SelectionError(f"there is no {source} in {view.what}")
        if not _there(path, view):
            raise SelectionError(f"{source} is left out of {view.what} by its ignore file")
        return [path]
    found = list(dict.fromkeys(_glob(pattern, "", 0, set())))
    if not found:
        raise _NothingFits(f"nothing in {view.what} fits {source}")
    there = [path for path in found if _there(path, view)]
    if not there:
        raise _NothingFits(f"all that fits {source} is left out of {view.what} by its ignore file")
    return there


def _there(path: str, view: View) -> bool:
    if not path or not view.rules.ignores(path):
        return True
    return os.path.isdir("/" + path) and view.rules.exempts_below(path)


def _glob(pattern: PathPattern, directory: str, at: int, seen: set[tuple[str, int]]) -> Iterator[str]:
    if (directory, at) in seen:
        return  # `**/a/**/a` comes to a place in many ways
    seen.add((directory, at))
    if at == len(pattern.components):
        yield directory
        return
    component = pattern.components[at]
    last = at + 1 == len(pattern.components)
    if component.deep and not last:
        yield from _glob(pattern, directory, at + 1, seen)
    if component.name is not None:
        names = [component.name] if os.path.lexists(_join("/" + directory, component.name)) else []
    else:
        names = _listed("/" + directory) if os.path.isdir("/" + directory) else []
    for name in names:
        path = _join(directory, name)
        if component.deep and not last:
            if stat.S_ISDIR(os.lstat("/" + path).st_mode):
                yield from _glob(pattern, path, at, seen)
        elif component.deep or component.matches(name):
            yield from _glob(pattern, path, at + 1, seen)


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory), key=os.fsencode)
    except NotADirectoryError:
        return []


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory else name


def _item(step: Copy, source: str, path: str, view: View) -> Item | None:
    real = os.path.realpath("/" + path).lstrip("/")
    try:
        mode = os.stat("/" + real).st_mode
    except FileNotFoundError:
        raise SelectionError(f"{source}: /{path} is a link to something that is not in {view.what}") from None
    if real != path and real and not _there(real, view):
        raise SelectionError(f"{source} leads to {real}, which the ignore file leaves out of {view.what}")
    name = _kept(source, path) if step.parents else ""
    if stat.S_ISDIR(mode):
        return Item("directory", real, name)
    if not stat.S_ISREG(mode):
        raise SelectionError(f"{source}: {path} is neither a file nor a directory")
    if view.excludes.ignores(posixpath.basename(path)) or (step.parents and view.excludes.ignores(name)):
        return None
    if isinstance(step, Add) and step.unpack is not False:
        with open_regular("/" + real) as file:
            if archives.is_archive(archives.Peeked(file)):
                return Item("archive", real, posixpath.basename(path))
    return Item("file", real, name or posixpath.basename(path))


def _kept(source: str, path: str) -> str:
    """What of a path stays with --parents: what comes after `/./` in the source."""
    while source.startswith(("/", "./")):
        source = source.lstrip("/").removeprefix("./")
    before, pivot, _ = source.partition("/./")
    skipped = len([part for part in before.split("/") if part not in ("", ".")]) if pivot else 0
    return "/".join(path.split("/")[skipped:])


def entries(item: Item, view: View) -> Iterator[tuple[Entry, str]]:
    """What an item is made of, as entries of an archive and where each is: directories before what is in them."""
    view.links.clear()
    parts = item.name.split("/")[:-1] if item.name and "/" in item.name else []
    depth = len(item.name.split("/")) - 1
    above = item.path.split("/")[: -depth - 1] if depth else []
    for i in range(len(parts)):
        # The directories that --parents keeps are as they are in the tree, if they can be told.
        path = "/" + "/".join((*above, *parts[: i + 1]))
        if os.path.isdir(path) and not os.path.islink(path):
            yield _entry(os.fsencode("/".join(parts[: i + 1])), path, view), path
    if item.kind != "directory":
        yield _entry(os.fsencode(item.name), "/" + item.path, view), "/" + item.path
        return
    state: tuple[bool, ...] = ()
    for i in range(len(names := item.path.split("/"))):
        _, state = view.rules.step("/".join(names[: i + 1]), state) if item.path else (False, ())
    top = "/" + item.path
    yield _entry(os.fsencode(item.name or "."), top, view), top
    yield from _below(_Level(item.path, item.name, "", state, ()), view)


@dataclass(frozen=True)
class _Level:
    """A directory on the way: its path in the tree, its name in the target, its path in the item; what rules fit it."""

    path: str
    name: str
    inner: str
    ignored: tuple[bool, ...]
    excluded: tuple[bool, ...]


def _below(level: _Level, view: View) -> Iterator[tuple[Entry, str]]:
    for base in _listed("/" + level.path):
        path, name, inner = _join(level.path, base), _join(level.name, base), _join(level.inner, base)
        status = os.lstat("/" + path)
        ignored, ignore_state = view.rules.step(path, level.ignored)
        excluded, exclude_state = view.excludes.step(inner, level.excluded)
        directory = stat.S_ISDIR(status.st_mode)
        if stat.S_ISSOCK(status.st_mode):
            continue
        if not directory:
            if not (ignored or excluded):
                yield _entry(os.fsencode(name), "/" + path, view), "/" + path
            continue
        if (ignored and not view.rules.exempts_below(path)) or (excluded and not view.excludes.exempts_below(inner)):
            continue
        inside = _below(_Level(path, name, inner, ignore_state, exclude_state), view)
        own = _entry(os.fsencode(name), "/" + path, view), "/" + path
        if not (ignored or excluded):
            yield own
            yield from inside
        elif (first := next(inside, None)) is not None:
            yield from (own, first)
            yield from inside


def _entry(name: bytes, path: str, view: View) -> Entry:
    status = os.lstat(path)
    entry = Entry()
    entry.type = _TYPES[stat.S_IFMT(status.st_mode)]
    entry.name = name
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.mtime = status.st_mtime_ns
    if view.keep_owners:
        entry.uid, entry.gid = status.st_uid, status.st_gid
    if view.change is not None and entry.type != tar_stream.SYMLINK:
        entry.mode = view.change(entry.mode, entry.type == tar_stream.DIRECTORY)
    if entry.type == tar_stream.REGULAR:
        if status.st_nlink > 1:
            first = view.links.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                entry.type, entry.link = tar_stream.LINK, first
                return entry
        entry.size = entry.stored = status.st_size
    elif entry.type == tar_stream.SYMLINK:
        entry.link = os.fsencode(os.readlink(path))
    elif entry.type in (tar_stream.CHAR, tar_stream.BLOCK_DEVICE):
        entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    entry.xattrs = _attributes(path)
    return entry


def _attributes(path: str) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    return {
        os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names if name.startswith(_ATTRIBUTES)
    }


class Digest:
    """Of what is copied: everything of an entry but its time."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.files = 0

    def entry(self, entry: Entry) -> None:
        """Takes in what stands before the content."""
        told, entry.mtime = entry.mtime, 0
        self._hash.update(tar_writer.header(entry))
        entry.mtime = told
        self.files += 1

    def data(self, piece: bytes) -> None:
        """Takes in a piece of the content."""
        self._hash.update(piece)

    def text(self) -> str:
        """sha256:…"""
        return "sha256:" + self._hash.hexdigest()


def contents(entry: Entry, path: str) -> Iterator[bytes]:
    """The bytes of a file, as many as its entry says. Raises SelectionError where it has fewer by now."""
    if entry.type != tar_stream.REGULAR:
        return
    left = entry.size
    with open_regular(path) as file:
        while left:
            piece = file.read(min(left, _READ))
            if not piece:
                raise SelectionError(f"{path} has become shorter while it was copied")
            left -= len(piece)
            yield piece


def digest_of(item: Item, view: View) -> tuple[str, int]:
    """What a file or directory is, and how many entries that are."""
    digest = Digest()
    for entry, path in entries(item, view):
        digest.entry(entry)
        for piece in contents(entry, path):
            digest.data(piece)
    return digest.text(), digest.files
