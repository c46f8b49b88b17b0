"""The pinned namespaces of a pod sandbox, with everything that has to be done inside them.

    <directory>/ns/{user,net,ipc,uts}      pinned namespaces; which of them, the arguments say
    <shm path>                             a tmpfs of the pod's /dev/shm, in the host's mount namespace

Whoever does it moves into the new namespaces, pins them, and ends: nobody stays behind, for a namespace is joined for good,
and a sysctl is written by who is inside. It never leaves the host's mount namespace, where the pins are. A thread of the
daemon that was made for it can do that (a fork takes longer than all the rest), but no thread can make a user namespace:
that is a job of the fork server.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from typing import Any, NoReturn

from kernel import mounts, namespaces
from kernel.namespaces import IdMap
from proto.errors import Code, CrispError

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_KINDS = ("net", "ipc", "uts")
_DONE = b"\0"

# Which namespace a sysctl belongs to, by its name's beginning (Documentation/admin-guide/sysctl).
_SYSCTL_OWNERS = (
    ("net.", "net"),
    ("kernel.sem", "ipc"),
    ("kernel.shm", "ipc"),
    ("kernel.msg", "ipc"),
    ("fs.mqueue.", "ipc"),
    ("kernel.domainname", "uts"),
)
_SWAP = str.maketrans("./", "/.")


def create(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """The job: `make`."""
    return make(args)


def make(args: dict[str, Any]) -> dict[str, Any]:
    """Create and pin, by this thread; {"pinned": {kind: path}}. What was made before a failure is taken back.

    `args`: directory, kinds (of net, ipc, uts, user), hostname ("" leaves it), sysctls {name: value}, shm {path, size}
    or null, uids and gids ([[inside, outside, size], ...]; with "user" in kinds), netns (a second place to pin "net" at).
    """
    folder = os.path.join(args["directory"], "ns")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    kinds = [kind for kind in _KINDS if kind in args["kinds"]]
    # Before anything is made: a sysctl outside these namespaces would change the host.
    files = {name: sysctl_file(name, kinds) for name in args.get("sysctls") or {}}
    pinned: dict[str, str] = {}
    shm = args.get("shm")
    try:
        if shm:
            _mount_shm(shm)
        if "user" in args["kinds"]:
            _make_with_owner(folder, kinds, args, files, pinned)
        else:
            namespaces.unshare(kinds)
            for kind in kinds:
                _pin(folder, kind, "thread-self", pinned)
            _furnish(kinds, args, files)
        if args.get("netns") and "net" in pinned:
            namespaces.publish(pinned["net"], args["netns"])
    except BaseException:
        if args.get("netns"):
            with suppress(OSError):
                namespaces.unpin(args["netns"])
        _take_back(pinned, shm)
        raise
    return {"pinned": pinned}


def sysctl_file(name: str, kinds: list[str]) -> str:
    """The file of a sysctl, in either notation (`net.ipv4.x`, `net/ipv4/x`); only one of the namespaces `kinds`."""
    first = min((name.find(sign) for sign in "./" if sign in name), default=-1)
    dotted = name.translate(_SWAP) if first >= 0 and name[first] == "/" else name
    owner = next((kind for prefix, kind in _SYSCTL_OWNERS if dotted.startswith(prefix)), None)
    path = dotted.translate(_SWAP)
    if owner is None or any(part in ("", ".", "..") for part in path.split("/")):
        raise CrispError(Code.INVALID_ARGUMENT, f"sysctl {name!r} does not belong to a pod's namespaces")
    if owner not in kinds:
        message = f"sysctl {name!r} would change the host: the pod shares the host's {owner} namespace"
        raise CrispError(Code.INVALID_ARGUMENT, message)
    return "/proc/sys/" + path


def _pin(folder: str, kind: str, pid: int | str, pinned: dict[str, str]) -> None:
    """Pin over whatever an earlier attempt has left at that name."""
    path = os.path.join(folder, kind)
    namespaces.unpin(path)
    namespaces.pin(path, kind, pid)
    pinned[kind] = path


def _mount_shm(shm: dict[str, Any]) -> None:
    """Mount the pod's /dev/shm, over nothing that an earlier attempt has left."""
    os.makedirs(shm["path"], exist_ok=True)
    while mounts.detach(shm["path"]):
        continue
    mounts.tmpfs(shm["path"], int(shm["size"]), label=shm.get("label", ""))


def _make_with_owner(
    folder: str, kinds: list[str], args: dict[str, Any], files: dict[str, str], pinned: dict[str, str]
) -> None:
    """Have a child make the user namespace and the others, which it then owns and furnishes; pin them from outside.

    The mappings must be written from the parent namespace, and pinning is a mount in the host's mount namespace, which
    a process inside has no right to make. Sysctls of IPC are writable for the owner's root alone.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        ours.close()
        _inhabit(kinds, args, files, theirs)
    theirs.close()
    try:
        _expect_done(ours.recv(4096))
        uids, gids = ([IdMap(*entry) for entry in args[name]] for name in ("uids", "gids"))
        namespaces.write_mappings(child, uids, gids)
        for kind in ("user", *kinds):
            _pin(folder, kind, child, pinned)
        ours.send(_DONE)
        _expect_done(ours.recv(4096))
    finally:
        ours.close()
        os.waitpid(child, 0)


def _inhabit(kinds: list[str], args: dict[str, Any], files: dict[str, str], channel: socket.socket) -> NoReturn:
    """The child: unshare, wait for the mappings, become root by them, furnish."""
    try:
        namespaces.unshare(["user", *kinds])
        channel.send(_DONE)
        if channel.recv(16) == _DONE:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            _furnish(kinds, args, files)
            channel.send(_DONE)
    except CrispError as error:
        channel.send(error.message.encode())
    except OSError as error:
        channel.send(f"cannot make a user namespace: {error}".encode())
    finally:
        os._exit(0)


def _expect_done(answer: bytes) -> None:
    if answer != _DONE:
        message = answer.decode(errors="replace") or "the user namespace's first process died"
        raise CrispError(Code.INVALID_ARGUMENT, message)


def _furnish(kinds: list[str], args: dict[str, Any], files: dict[str, str]) -> None:
    """Hostname, loopback and sysctls, from inside."""
    if "uts" in kinds and args.get("hostname"):
        socket.sethostname(args["hostname"])
    if "net" in kinds:
        _raise_loopback()
    for name, path in files.items():
        value = str(args["sysctls"][name])
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            message = f"sysctl {name!r} = {value!r}: {error.strerror}"
            raise CrispError(Code.INVALID_ARGUMENT, message) from error


def _raise_loopback() -> None:
    """Set IFF_UP on lo (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inet:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(inet, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(inet, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _take_back(pinned: dict[str, str], shm: dict[str, Any] | None) -> None:
    """Undo what `create` has done so far."""
    for path in pinned.values():
        with suppress(OSError):
            namespaces.unpin(path)
    if shm:
        with suppress(OSError):
            mounts.detach(shm["path"])
