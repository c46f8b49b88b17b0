"""Mounts: what is mounted where (mountinfo), overlays of any number of layers, binds and propagation.

Paths from the kernel are bytes and stay bytes. Failures are `OSError`s that name the call and the path.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import NamedTuple

from kernel import syscalls

_PAGE = 4096  # mount(2) copies at most this many bytes of options


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)), octal escapes undone."""

    mount_id: int
    parent_id: int
    device: bytes
    """major:minor."""
    root: bytes
    """Which directory of its file system is the mount's root."""
    mount_point: bytes
    options: tuple[bytes, ...]
    """Options of the mount itself: ro, nosuid, ..."""
    shared: int
    """Its peer group, 0 if not shared."""
    master: int
    """The peer group it receives from, 0 if it is not a slave."""
    unbindable: bool
    fstype: bytes
    source: bytes
    super_options: tuple[bytes, ...]

    @property
    def propagation(self) -> str:
        """`shared`, `slave`, `private` or `unbindable`; a shared slave counts as shared."""
        if self.shared:
            return "shared"
        if self.master:
            return "slave"
        return "unbindable" if self.unbindable else "private"


def unescape(field: bytes) -> bytes:
    r"""Undo mountinfo's octal escapes: `\040` is a space, `\134` a backslash."""
    head, *parts = field.split(b"\\")
    out = [head]
    for part in parts:
        digits = part[:3]
        if len(digits) == 3 and all(48 <= digit <= 55 for digit in digits) and digits < b"400":
            out.append(bytes((int(digits, 8),)) + part[3:])
        else:
            out.append(b"\\" + part)
    return b"".join(out)


def parse_line(line: bytes) -> Mount | None:
    """Parse one line of mountinfo; None if it does not have its form."""
    fields = line.split()
    try:
        separator = fields.index(b"-", 6)
        tags = dict(tag.partition(b":")[::2] for tag in fields[6:separator])
        return Mount(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=fields[2],
            root=unescape(fields[3]),
            mount_point=unescape(fields[4]),
            options=tuple(fields[5].split(b",")),
            shared=int(tags.get(b"shared", 0)),
            master=int(tags.get(b"master", 0)),
            unbindable=b"unbindable" in tags,
            fstype=unescape(fields[separator + 1]),
            source=unescape(fields[separator + 2]),
            super_options=tuple(fields[separator + 3].split(b",")),
        )
    except (ValueError, IndexError):
        return None


def parse(text: bytes) -> list[Mount]:
    """Parse a whole mountinfo file, in its order (the order of mounting)."""
    return [entry for line in text.splitlines() if (entry := parse_line(line)) is not None]


def mountinfo(pid: int | str = "self") -> list[Mount]:
    """The mounts that process `pid` sees."""
    return parse(_table(pid))


def of_type(prefix: bytes) -> list[Mount]:
    """Those of file systems whose type begins so: of hundreds of mounts, no others are parsed."""
    return parse(b"\n".join(line for line in _table("self").splitlines() if b" - " + prefix in line))


def _table(pid: int | str) -> bytes:
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return file.read()


def below(directory: str | bytes, entries: list[Mount] | None = None) -> list[Mount]:
    """Mounts at or under `directory`, the last mounted first: the order in which they can be unmounted."""
    prefix = os.fsencode(directory).rstrip(b"/")
    found = mountinfo() if entries is None else entries
    return [m for m in reversed(found) if m.mount_point == prefix or m.mount_point.startswith(prefix + b"/")]


def holding(path: str | bytes, entries: list[Mount] | None = None) -> Mount:
    """The mount in which `path` lies; symlinks are not followed, so pass a real path.

    Its `propagation` is what a HostToContainer or Bidirectional volume at `path` depends on. The path itself is not touched:
    the table is walked as the kernel walks, from mount to mount, so that what a later mount on a parent hides is not found.
    """
    wanted = os.fsencode(path)
    found = mountinfo() if entries is None else entries
    on_the_way = [entry for entry in found if _covers(entry.mount_point, wanted)]
    known = {entry.mount_id for entry in found}
    # In a changed root nothing may be mounted at `/` itself: then the outermost mounts that are seen are the beginning.
    here = min(
        (entry for entry in on_the_way if entry.parent_id not in known or entry.parent_id == entry.mount_id),
        key=lambda entry: len(entry.mount_point),
        default=None,
    )
    if here is None:
        raise OSError(errno.ENOENT, "no mount holds this path", os.fsdecode(wanted))
    while True:
        inner = [entry for entry in on_the_way if entry.parent_id == here.mount_id and entry is not here]
        if not inner:
            return here
        here = min(inner, key=lambda entry: len(entry.mount_point))


def _covers(mount_point: bytes, path: bytes) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip(b"/") + b"/")


def is_mount_point(path: str | bytes) -> bool:
    """Whether something is mounted exactly at `path`, and not hidden by a later mount on a parent."""
    wanted = os.fsencode(path)
    return holding(wanted).mount_point == wanted


def bind(source: str | bytes, target: str | bytes, readonly: bool = False, recursive: bool = False) -> None:
    """Bind `source` at `target`; a read-only bind needs a second call because the first ignores the flag."""
    syscalls.mount(source, target, flags=syscalls.MS_BIND | (syscalls.MS_REC if recursive else 0))
    if readonly:
        syscalls.mount("none", target, flags=syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY)


def make_private(path: str | bytes, recursive: bool = False) -> None:
    """Let no mount or unmount under the mount `path` reach other namespaces, nor theirs reach it."""
    syscalls.mount("none", path, flags=syscalls.MS_PRIVATE | (syscalls.MS_REC if recursive else 0))


def ensure_private_mount(directory: str | bytes) -> None:
    """Make `directory` a private mount of its own, so that what is mounted below it stays in its namespace."""
    real = os.path.realpath(os.fsencode(directory))
    if not is_mount_point(real):
        bind(real, real)
    make_private(real)


def detach(target: str | bytes) -> bool:
    """Unmount lazily what is at `target`; False if nothing was mounted there."""
    try:
        syscalls.umount2(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return False
        raise
    return True


def detach_all(directory: str | bytes) -> int:
    """Lazily unmount everything at or under `directory`; how many mounts went."""
    return sum(detach(entry.mount_point) for entry in below(os.path.realpath(os.fsencode(directory))))


def tmpfs(target: str | bytes, size: int, mode: int = 0o1777, label: str = "") -> None:
    """Mount a tmpfs of `size` bytes (0: the kernel's default, half of the memory), nosuid, nodev, noexec.

    `label` is the SELinux label of everything in it.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    options = f"mode={mode:o}" + (f",size={size}" if size else "") + (f',context="{label}"' if label else "")
    syscalls.mount("shm", target, "tmpfs", flags, options)


def overlay(
    target: str | bytes, lower: list[str], upper: str = "", work: str = "", volatile: bool = False, label: str = ""
) -> None:
    """Mount an overlay of `lower` (topmost first, at most 500: the kernel's limit) at `target`.

    Without `upper` it is read-only and needs two lower directories (the caller binds a single one instead). `volatile`
    leaves out every sync: after a crash of the host the upper directory must not be used again, which the kernel
    enforces by `work/incompat/volatile`; that mark is removed here, for crisp decides from its records what survives.
    `label` is the SELinux label that all files have in it.
    """
    if upper:
        clear_volatile_mark(work)
    options: list[tuple[bytes, str]] = [(b"upperdir", upper), (b"workdir", work)] if upper else []
    if label:
        options.append((b"context", label))
    try:
        fd = _overlay_fd(lower, options, volatile and bool(upper))
    except OSError as error:
        # Before Linux 6.5 there was no "lowerdir+" (EINVAL); before 5.2 no fsopen (ENOSYS).
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _overlay_by_options(target, lower, options, volatile and bool(upper))
        return
    try:
        syscalls.move_mount(fd, target)
    finally:
        os.close(fd)


def _overlay_fd(lower: list[str], options: list[tuple[bytes, str]], volatile: bool) -> int:
    """A detached overlay mount, made with one fsconfig call for each layer."""
    context = syscalls.fsopen(b"overlay")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, b"source", "overlay")
        for directory in lower:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, b"lowerdir+", directory)
        for key, value in options:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        if volatile:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, b"volatile")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def erofs(source: str | bytes) -> int:
    """A detached, read-only mount of the EROFS image in the file `source`; descriptors are looked up relative to it.

    A file is mounted as such (Linux 6.12); each call makes a super block of its own. The file is read past the page cache
    (`directio`; a kernel that does not know this option does nothing else): pages would be held twice otherwise.

    Raises:
        OSError: with the kernel's own words where it has some.
    """
    try:
        return _erofs(source, b"directio")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _erofs(source)


def _erofs(source: str | bytes, *flags: bytes) -> int:
    context = syscalls.fsopen(b"erofs")
    try:
        try:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, b"source", source)
            for flag in flags:
                syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, flag)
            syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        except OSError as error:
            words = _refusal(context) or f"{error.strerror}"
            raise OSError(error.errno, f"erofs: {words}", os.fsdecode(source)) from None
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def _refusal(context: int) -> str:
    """What the kernel says of a file system that it has not made: lines that begin with their kind, `e ` for errors."""
    words = []
    with suppress(OSError):  # ENODATA at the end
        while line := os.read(context, _PAGE):
            words.append(line.decode(errors="replace").strip().removeprefix("e "))
    return "; ".join(words)


def _overlay_by_options(target: str | bytes, lower: list[str], options: list[tuple[bytes, str]], volatile: bool) -> None:
    """mount(2) with everything in one page of options, names relative to the layers' common directory."""
    top = os.path.commonpath([os.path.dirname(directory) for directory in lower])
    names = [os.path.relpath(directory, top) for directory in lower]
    data = ",".join(
        ["lowerdir=" + ":".join(_escape(name) for name in names)]
        + [f"{key.decode()}={_escape(value)}" for key, value in options if key != b"context"]
        + [f'context="{value}"' for key, value in options if key == b"context"]
        + (["volatile"] if volatile else [])
    )
    if len(os.fsencode(data)) >= _PAGE:
        message = f"the options of an overlay of {len(lower)} layers exceed one page; Linux 6.5 lifts that limit"
        raise OSError(errno.E2BIG, message, os.fsdecode(target))
    absolute = os.path.abspath(os.fsdecode(target))
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(top)
        syscalls.mount("overlay", absolute, "overlay", data=data)
    finally:
        os.fchdir(before)
        os.close(before)


def _escape(path: str) -> str:
    """Escape what separates options and layers in overlayfs's option string."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def clear_volatile_mark(work: str) -> None:
    """Remove `work/incompat/volatile`, which makes the kernel refuse an upper directory used by a volatile mount."""
    for name, remove in (("volatile/dirty", os.unlink), ("volatile", os.rmdir), ("", os.rmdir)):
        try:
            remove(os.path.join(work, "work/incompat", name))
        except (FileNotFoundError, NotADirectoryError):
            continue
