"""RUN --mount: what a step's container sees besides its image, as mounts of the CRI and variables.

bind     the context (a copy, as its ignore file leaves it), a stage or an image; what is written to it is thrown away
cache    a directory that stays from one build to the next, below the daemon's; its users hold locks, so that none is removed
tmpfs    in memory
secret   a file in memory, or a variable
ssh      the socket of the user's agent
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import posixpath
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from imagesvc.containerfile.instructions import Copy, Run, RunMount
from kernel import modes, mounts, removal, syscalls
from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.build.session import Session

LOOK_SECONDS: Final = 0.1
MAX_LINKS: Final = 40
"""On the way to one file; as the kernel's."""
SECRETS: Final = "/run/secrets"
SOCKETS: Final = "/run/buildkit/ssh_agent"


@dataclass(slots=True)
class Extras:
    """What a container gets more than its image and its command say."""

    mounts: list[cri.Mount] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where mounts come from. The functions take a mount and say an image's id, or a directory's path on this host."""

    secrets: Mapping[str, bytes]
    agents: Mapping[str, str]
    """Sockets by their ids."""
    image: Callable[[Run, RunMount], str]
    """Whose files a bind with `from` shows."""
    context: Callable[[Run, RunMount, ExitStack], str]
    """A copy of what a bind without `from` shows, writable, until the stack is closed."""
    fill: Callable[[Run, RunMount, str], None]
    """Puts into a directory what a new cache with `from` begins with."""


def prepare(step: Run, session: Session, sources: Sources, image: str, workdir: str, stack: ExitStack) -> Extras:
    """Make what a step's mounts need, until `stack` is closed. `image`: that of the step's container.

    Raises:
        ContainerfileError: there is no such thing.
    """
    extras = Extras()
    for number, mount in enumerate(step.mounts):
        target = posixpath.join(workdir, mount.target) if mount.target else ""
        if mount.type == "bind":
            extras.mounts.append(_bind(step, mount, target, session, sources, stack))
        elif mount.type == "cache":
            extras.mounts.append(_cache(step, mount, target, session, sources, stack))
        elif mount.type == "tmpfs":
            extras.mounts.append(_tmpfs(mount, target, session, stack))
        elif mount.type == "secret":
            _secret(step, mount, target, session, sources, extras, stack)
        else:
            _agent(step, mount, target or f"{SOCKETS}.{number}", sources, extras)
    if step.script:
        extras.mounts.append(_script(step, session, stack))
    if extras.mounts:
        with session.mounted(image) as tree:
            for one in extras.mounts:
                one.container_path = _place(step, tree.directory, one.container_path)
    return extras


def _place(step: Run, root: str, path: str) -> str:
    try:
        place = settled(root, path)
    except OSError as error:
        raise step.error(f"--mount: {path}: {error.strerror}") from None
    if place == "/":
        raise step.error(f"--mount: {path}: nothing can be mounted over the root")
    return place


def settled(root: str, path: str) -> str:
    """A path of a tree without the links that lead there: where its mount point is made, and is left out of the layer.

    Not all of it need be there, nor what a link leads to. None leads out: `root` is where an absolute one begins, and where
    `..` ends. OSError for too many of them.
    """
    words, found, links = path.split("/")[::-1], list[str](), 0
    while words:
        word = words.pop()
        if word == "..":
            del found[-1:]
        elif word not in ("", "."):
            try:
                target = os.readlink(os.path.join(root, *found, word))
            except OSError:  # no link, or nothing at all
                found.append(word)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                found.clear()
            words += target.split("/")[::-1]
    return "/" + "/".join(found)


def _bind(step: Run, mount: RunMount, target: str, session: Session, sources: Sources, stack: ExitStack) -> cri.Mount:
    if not mount.from_:
        place = sources.context(step, mount, stack)
        return cri.Mount(container_path=target, host_path=place, readonly=mount.readonly)
    image = sources.image(step, mount)
    if mount.readonly:
        return cri.Mount(
            container_path=target,
            image=cri.ImageSpec(image=image),
            image_sub_path=mount.source.strip("/"),
            readonly=True,
        )
    directory = stack.enter_context(session.mounted(image, writable=True)).directory
    return cri.Mount(container_path=target, host_path=inside(directory, mount.source, step))


def inside(root: str, path: str, step: Run) -> str:
    """Where a path of a tree is on this host; links lead nowhere else."""
    tree = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = syscalls.openat2(tree, path.strip("/") or ".", os.O_PATH | os.O_CLOEXEC, syscalls.RESOLVE_IN_ROOT)
    except OSError as error:
        raise step.error(f"--mount: {path}: {error.strerror}") from None
    finally:
        os.close(tree)
    try:
        return os.readlink(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


def _cache(step: Run, mount: RunMount, target: str, session: Session, sources: Sources, stack: ExitStack) -> cri.Mount:
    key = hashlib.sha256((mount.id or target).encode()).hexdigest()[:32]
    name, number = key, 0
    while (held := _hold(os.path.join(session.caches, name), mount.sharing)) is None:
        if mount.sharing == "private":
            number += 1
            name = f"{key}-{number}"
        elif session.ended:
            raise CrispError(Code.ABORTED, "the build has ended")
        else:
            time.sleep(LOOK_SECONDS)
    for descriptor in held:
        stack.callback(os.close, descriptor)
    data = os.path.join(session.caches, name, "data")
    with open(os.path.join(session.caches, name, "making"), "wb") as making:
        fcntl.flock(making, fcntl.LOCK_EX)  # another step may be here at the same time
        if not os.path.isdir(data):
            half = f"{data}.half"
            removal.remove_tree(half)
            os.mkdir(half)
            if mount.from_:
                sources.fill(step, mount, half)
            os.chown(half, mount.uid, mount.gid)
            os.chmod(half, 0o755 if mount.mode is None else mount.mode)
            os.rename(half, data)
    return cri.Mount(container_path=target, host_path=data, readonly=mount.readonly)


def _hold(place: str, sharing: str) -> list[int] | None:
    """Descriptors that hold a cache; None if it is somebody else's alone just now. A locked one is not waited for here, in a
    call that nothing could end."""
    while True:
        try:
            modes.own(place, 0o700)
            lock = os.open(os.path.join(place, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # as below
            continue
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            same = os.fstat(lock).st_ino == os.stat(os.path.join(place, "lock")).st_ino
        except FileNotFoundError:  # it was removed just now
            same = False
        if same:
            break
        os.close(lock)
    if sharing == "shared":
        return [lock]
    turn = os.open(os.path.join(place, "turn"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(turn)
        os.close(lock)
        return None
    return [lock, turn]


def _tmpfs(mount: RunMount, target: str, session: Session, stack: ExitStack) -> cri.Mount:
    place = os.path.join(session.memory, f"tmpfs-{secrets.token_hex(8)}")
    os.mkdir(place, 0o700)
    options = "mode=1777" + (f",size={mount.size}" if mount.size else "")
    syscalls.mount("tmpfs", place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    stack.callback(mounts.detach, place)
    return cri.Mount(container_path=target, host_path=place)


def _secret(
    step: Run, mount: RunMount, target: str, session: Session, sources: Sources, extras: Extras, stack: ExitStack
) -> None:
    name = mount.id or posixpath.basename(target) or mount.env
    value = sources.secrets.get(name)
    if value is None:
        if mount.required:
            raise step.error(f"there is no secret {name!r}, and it is required: give it by --secret id={name},src=FILE")
        return
    if mount.env:
        extras.environment[mount.env] = value.decode("utf-8", "surrogateescape")
    if target or not mount.env:
        mode = 0o400 if mount.mode is None else mount.mode
        place = _file(session, value, mode, (mount.uid, mount.gid), stack)
        extras.mounts.append(cri.Mount(container_path=target or f"{SECRETS}/{name}", host_path=place, readonly=True))


def _file(session: Session, data: bytes, mode: int, owner: tuple[int, int], stack: ExitStack) -> str:
    place = os.path.join(session.memory, f"file-{secrets.token_hex(8)}")
    with open(place, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(data)
        os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
    stack.callback(os.unlink, place)
    return place


def _agent(step: Run, mount: RunMount, target: str, sources: Sources, extras: Extras) -> None:
    name = mount.id or "default"
    socket = sources.agents.get(name)
    if socket is None:
        if mount.required:
            raise step.error(f"there is no SSH agent {name!r}, and it is required: give it by --ssh {name}")
        return
    if (mount.mode or 0o600) != 0o600 or mount.uid or mount.gid:
        raise step.error("--mount=type=ssh: mode, uid and gid are not supported: the socket is your agent's own")
    extras.mounts.append(cri.Mount(container_path=target, host_path=socket))
    extras.environment["SSH_AUTH_SOCK"] = target


SCRIPT: Final = "/run/crisp-build/script"
"""Where the file of a here-document with a `#!` is."""


def _script(step: Run, session: Session, stack: ExitStack) -> cri.Mount:
    place = _file(session, step.script.encode("utf-8", "surrogateescape"), 0o755, (0, 0), stack)
    return cri.Mount(container_path=SCRIPT, host_path=place, readonly=True)


def copy_of(step: Run, mount: RunMount) -> Copy:
    """The COPY that brings the source of a bind into an empty tree, at /source."""
    return Copy(at=step.at, text=step.text, sources=(mount.source or ".",), target="/source/")
