"""Copying between this node's files and a container's, as tar archives between two processes that are each shut in.

Who packs and who unpacks has changed its root: to the container's, or to the directory here into which files go. So no link
and no name of a container can lead it elsewhere. It loads nothing any more either: a container has no say in what code this
is. Where the container has a user namespace it is in that one, so the owners of files are the container's.
"""

from __future__ import annotations

import errno
import os
import signal
import tarfile
from collections.abc import Callable
from typing import IO, Final, NoReturn

from kernel import syscalls
from runtime.build import shut_in
from runtime.cli.output import clean, fail

_LOST: Final = 1

_PERMISSIONS: Final = 0o1777
"""Of a file that gets another owner: a program of a container must not have the rights of who copies it."""


def copy_out(pid: int, source: str, target: str, *, archive: bool) -> None:
    """Copy `source` in the container of a process to `target` here, as docker and cp(1) do.

    That is: into a directory that is there, else under the new name. `-` is a tar archive on the standard output.
    """
    inside = _of_process(pid)
    if target == "-":
        _run(inside, lambda: _pack(source, os.fdopen(1, "wb", closefd=False)))
        return
    place, name = (target, "/") if os.path.isdir(target) else os.path.split(target.rstrip("/"))
    try:
        here = _Side(os.open(place or ".", os.O_PATH | os.O_DIRECTORY), None)
    except OSError as error:
        fail(f"{place}: {error.strerror}")
    _joined(inside, source, here, "/" + name.strip("/") + ("/" if target.endswith("/") else ""), archive)


def copy_in(pid: int, source: str, target: str, *, archive: bool) -> None:
    """The reverse: `source` here to `target` in the container; `-` is a tar archive on the standard input."""
    inside = _of_process(pid)
    here = _Side(os.open("/", os.O_PATH | os.O_DIRECTORY), None)
    if source == "-":
        _run(inside, lambda: _unpack(target, os.fdopen(0, "rb", closefd=False), archive, named=False))
    else:
        _joined(here, os.path.abspath(source) + _slash(source), inside, target, archive)


class _Side:
    """Where a process is to work: a root directory, and a user namespace if it is another than ours."""

    def __init__(self, root: int, user: int | None) -> None:
        self.root, self.user = root, user

    def enter(self) -> None:
        """Go there for good."""
        if self.user is not None:
            syscalls.setns(self.user, syscalls.CLONE_NEWUSER)
            os.setgroups([])
            os.setgid(0)
            os.setuid(0)
        shut_in.enter(self.root)


def _of_process(pid: int) -> _Side:
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
    ours, theirs = os.stat("/proc/self/ns/user"), os.stat(f"/proc/{pid}/ns/user")
    return _Side(root, None if ours.st_ino == theirs.st_ino else os.open(f"/proc/{pid}/ns/user", os.O_RDONLY))


def _slash(path: str) -> str:
    """What abspath takes from a path that means a directory, or what is in one."""
    return "/." if path.endswith("/.") or path == "." else "/" if path.endswith("/") else ""


def _joined(source_side: _Side, source: str, target_side: _Side, target: str, archive: bool) -> None:
    reading, writing = os.pipe()
    packer = _started(source_side, lambda: _pack(source, os.fdopen(writing, "wb")), reading)
    os.close(writing)
    unpacker = _started(target_side, lambda: _unpack(target, os.fdopen(reading, "rb"), archive, named=True))
    os.close(reading)
    if any([_failed(unpacker), _failed(packer)]):
        raise SystemExit(1)


def _run(side: _Side, work: Callable[[], None]) -> None:
    if _failed(_started(side, work)):
        raise SystemExit(1)


def _started(side: _Side, work: Callable[[], None], *unwanted: int) -> int:
    """A process that does the work on its side; what goes wrong it says itself."""
    tarfile.grp = tarfile.pwd = None  # type: ignore[attr-defined]  # names of users are not asked for: that would load code
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _work(side, work, unwanted, parent)
    return pid


def _work(side: _Side, work: Callable[[], None], unwanted: tuple[int, ...], parent: int) -> NoReturn:
    status = _LOST
    try:
        for descriptor in unwanted:
            os.close(descriptor)
        side.enter()
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the ids, which undo it
        if os.getppid() == parent:
            work()
        status = 0
    except BrokenPipeError:
        pass  # the other one says why
    except SystemExit:
        pass
    except OSError as error:
        _say(f"{error.filename or 'cannot copy'}: {error.strerror}")
    except Exception as error:  # whatever it is: to end without a word helps nobody
        _say(f"cannot copy: {error}")
    finally:
        os._exit(status)


def _say(text: str) -> None:
    """Names in it may be a container's."""
    os.write(2, f"crisp: {clean(text, lines=False)}\n".encode(errors="replace"))


def _failed(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def _pack(source: str, output: IO[bytes]) -> None:
    """Write what is at `source` as an archive whose one top name is its own; `DIR/.` has no such name: what is in it."""
    name = "." if source.endswith("/.") else os.path.basename(source.rstrip("/")) or "."
    tarfile.bltn_open = shut_in.open_regular  # type: ignore[attr-defined]
    with output, tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        tar.add(source.rstrip("/") or "/", arcname=name)


def _opened(archive: IO[bytes], *, others: bool) -> tarfile.TarFile:
    """To be read. `others`: it is another process's, which says itself why there is nothing."""
    try:
        return tarfile.open(fileobj=archive, mode="r|")
    except tarfile.ReadError:
        if others:
            raise BrokenPipeError from None
        raise


def _unpack(target: str, archive: IO[bytes], owners: bool, *, named: bool) -> None:
    """Extract an archive at `target`: into the directory that is there; else its top becomes `target`, if it is `named`."""
    place, rename = target, ""
    if named and not os.path.isdir(target):
        if target.endswith("/") or not os.path.isdir(os.path.dirname(target)):
            raise NotADirectoryError(
                errno.ENOTDIR, "there is no such directory", target if target.endswith("/") else os.path.dirname(target)
            )
        place, rename = os.path.split(target)
    elif not os.path.isdir(target):
        raise NotADirectoryError(errno.ENOTDIR, "there is no such directory", target)
    owner, whole = os.stat(place), True
    with archive, _opened(archive, others=named) as tar:
        tar.errorlevel = 1
        tar.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)  # newer ones leave out what is no harm here
        for member in tar:
            if rename:
                _, slash, rest = member.name.partition("/")
                member.name = rename + slash + rest
                if member.islnk():
                    _, slash, rest = member.linkname.partition("/")
                    member.linkname = rename + slash + rest
            if not owners:
                member.uid, member.gid = owner.st_uid, owner.st_gid
                member.mode &= _PERMISSIONS
                if member.ischr() or member.isblk():
                    _say(f"{member.name}: a device is copied with --archive only")
                    whole = False
                    continue
            tar.extract(member, place, numeric_owner=True)
    if not whole:
        raise SystemExit(_LOST)
