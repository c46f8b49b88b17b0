"""Control groups: one interface over v1 (a mount for each controller), hybrid and pure v2.

A *group* is named by its path relative to a hierarchy's root ("kubepods/burstable/podX/ID"). On v1 the same path exists
once under each controller; on hybrid hosts (v1 controllers, and a cgroup2 mount beside them) the v1 controllers
hold the limits, and the cgroup2 mount serves to track and kill processes, which v1 cannot do atomically.

    mode     limits, statistics, OOM counts      killing                          emptiness
    V2       the one cgroup2 mount               cgroup.kill, else kill in loop   cgroup.events populated
    V1       /sys/fs/cgroup/<controller>         freeze, SIGKILL each pid, thaw   cgroup.procs of the whole tree
    HYBRID   as V1                               as V1, or a tracking group       as V1, or as V2

Everything here is level-triggered: call again until it says what you want to hear.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from kernel import mounts

ROOT = "/sys/fs/cgroup"

# The v1 hierarchy whose membership speaks for all: the freezer's if there, for killing goes through it.
_PRIMARY = ("freezer", "pids", "memory", "cpu")


class Mode(enum.Enum):
    """How this host mounts control groups."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


MODES = {mode.value: mode for mode in Mode}


class Hierarchies(NamedTuple):
    """Where this host's control groups are mounted."""

    mode: Mode
    controllers: dict[str, str]
    """Controller (and `name=systemd`) -> mount point; on v2 all have the same one."""
    unified: str
    """The cgroup2 mount point, "" if there is none."""

    def roots(self) -> tuple[str, ...]:
        """The distinct mount points that hold a group's directories, the primary one first."""
        if self.mode is Mode.V2:
            return (self.unified,)
        order = [name for name in _PRIMARY if name in self.controllers] + sorted(self.controllers)
        return tuple(dict.fromkeys(self.controllers[name] for name in order))

    def group(self, path: str) -> Group:
        """The group at `path` relative to the root."""
        return Group(self, path.strip("/"))


def quick_moves(entries: list[mounts.Mount] | None = None) -> bool:
    """Whether cgroup2 is mounted with `favordynmods`.

    Without it, who writes to a cgroup.procs of any hierarchy waits for a grace period of RCU, some milliseconds, unless
    somebody has just done so (Documentation/admin-guide/cgroup-v2.rst, "Mounting").
    """
    return any(b"favordynmods" in entry.super_options for entry in entries or mounts.of_type(b"cgroup2"))


def detect(entries: list[mounts.Mount] | None = None) -> Hierarchies:
    """Read the mode and the controllers from the mount table."""
    controllers: dict[str, str] = {}
    unified = ""
    for entry in mounts.of_type(b"cgroup") if entries is None else entries:
        point = os.fsdecode(entry.mount_point)
        if not (point == ROOT or point.startswith(ROOT + "/")):
            continue
        if entry.fstype == b"cgroup2":
            unified = point
        elif entry.fstype == b"cgroup":
            known = [option.decode() for option in entry.super_options if _is_controller(option)]
            controllers.update(dict.fromkeys(known, point))
    if controllers:
        return Hierarchies(Mode.HYBRID if unified else Mode.V1, controllers, unified)
    names = _read(os.path.join(unified, "cgroup.controllers")).split() if unified else []
    return Hierarchies(Mode.V2, {name.decode(): unified for name in names}, unified)


def _is_controller(option: bytes) -> bool:
    """Tell a v1 hierarchy's controllers from its other mount options."""
    return option not in {b"rw", b"ro", b"xattr", b"clone_children", b"noprefix"} and not option.startswith(
        b"release_agent="
    )


def expand_slice(name: str) -> str:
    """The nested path of a systemd slice: `a-b.slice` lies in `a.slice` (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    return "/".join("-".join(parts[: depth + 1]) + ".slice" for depth in range(len(parts)))


def parent_path(parent: str) -> str:
    """A pod's cgroup parent, as the kubelet sends it, as a relative path without a leading slash.

    The cgroupfs driver sends a path ("/kubepods/besteffort/podUID"); the systemd driver sends a slice's name
    ("kubepods-besteffort-podUID.slice"), possibly below other directories.
    """
    head, _, last = parent.strip("/").rpartition("/")
    if not last.endswith(".slice"):
        return parent.strip("/")
    expanded = expand_slice(last)
    return f"{head}/{expanded}" if head and not expanded.startswith(head.split("/")[0]) else expanded


def oci_path(parent: str, container: str, systemd: bool) -> str:
    """The OCI `cgroupsPath` of a container: `slice:prefix:name` for the systemd driver, else an absolute path."""
    if systemd:
        slice_name = parent.strip("/").rpartition("/")[2] or "system.slice"
        return f"{slice_name}:crisp:{container}"
    return f"/{container_path(parent, container, systemd)}"


def container_path(parent: str, container: str, systemd: bool) -> str:
    """Where the container of `oci_path` lies, relative to the hierarchies' roots."""
    name = f"crisp-{container}.scope" if systemd else container
    return f"{parent_path(parent)}/{name}".strip("/")


def of_process(pid: int, hierarchies: Hierarchies) -> str:
    """The path of the group of `pid`, "" for the root group or a process that is gone."""
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        number, names, path = line.decode(errors="surrogateescape").split(":", 2)
        if number == "0" if hierarchies.mode is Mode.V2 else _PRIMARY[0] in names.split(","):
            return path.strip("/")
    return ""


class Group:
    """One group in every hierarchy that has it. Methods read the kernel each time and cache nothing."""

    __slots__ = ("hierarchies", "path")

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        self.hierarchies = hierarchies
        self.path = path

    def directory(self, controller: str = "") -> str:
        """The group's directory under `controller`; the primary hierarchy's if "" or without that controller."""
        root = self.hierarchies.controllers.get(controller) or self.hierarchies.roots()[0]
        return f"{root}/{self.path}"  # `join` takes ten times as long, and this is asked for each file of each container

    def exists(self) -> bool:
        """Whether any hierarchy has the group."""
        return any(os.path.isdir(os.path.join(root, self.path)) for root in self.hierarchies.roots())

    def procs(self) -> set[int]:
        """The processes in the group and the groups below it."""
        return tree_procs(self.directory())

    def populated(self) -> bool:
        """Whether a process lives in the group or below it."""
        return tree_populated(self.directory())

    def kill(self) -> bool:
        """Send SIGKILL to everything in the group and below it; True if it was empty already."""
        assert self.path, "the root group holds the whole host"
        return kill_tree(self.directory())

    def oom_kills(self) -> int:
        """How many of the group's processes the OOM killer has ended; 0 if the kernel does not say.

        v2: memory.events counts the groups below too: crun keeps the container's processes in one.
        """
        if self.hierarchies.mode is not Mode.V2:
            return read_flat(os.path.join(self.directory("memory"), "memory.oom_control")).get("oom_kill", 0)
        return read_flat(os.path.join(self.directory(), "memory.events")).get("oom_kill", 0)

    def create(self) -> None:
        """Make the group in every hierarchy; a v1 cpuset without CPUs and memory nodes gets its parent's.

        One that is there already may be empty too: somebody else has made it and is about to do the same.
        """
        cpusets = "" if self.hierarchies.mode is Mode.V2 else self.hierarchies.controllers.get("cpuset")
        for root in self.hierarchies.roots():
            path = root
            for part in self.path.split("/"):
                path = os.path.join(path, part)
                with suppress(FileExistsError):
                    os.mkdir(path)
                if root == cpusets:
                    _inherit_cpuset(path)

    def create_below_parent(self) -> None:
        """Make the group in each hierarchy that has its parent: of those above, none is made.

        It is for no process: a v1 cpuset stays without CPUs, for with some it would keep the parent's from being narrowed.
        """
        for root in self.hierarchies.roots():
            with suppress(FileExistsError, FileNotFoundError):
                os.mkdir(os.path.join(root, self.path))

    def enter(self, pid: int) -> None:
        """Move process `pid` into the group, in every hierarchy."""
        for root in self.hierarchies.roots():
            write(os.path.join(root, self.path, "cgroup.procs"), str(pid))

    def remove(self) -> bool:
        """Remove the group and the groups below it everywhere; False while the kernel calls one of them busy."""
        busy = [root for root in self.hierarchies.roots() if not remove_tree(os.path.join(root, self.path))]
        return not busy


# --- one directory of one hierarchy ----------------------------------------------------------------------------


def walk(directory: str) -> Iterator[str]:
    """The directories at and below `directory`, children before parents."""
    found, waiting = [], [directory]
    while waiting:  # not by recursion: a container that has groups of its own decides over their depth
        path = waiting.pop()
        try:
            with os.scandir(path) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        found.append(path)
    yield from reversed(found)


def tree_procs(directory: str) -> set[int]:
    """The processes in `directory` and below."""
    found: set[int] = set()
    for path in walk(directory):
        found.update(_procs(path))
    # A process of another pid namespace that we cannot see is listed as 0.
    found.discard(0)
    return found


def _procs(directory: str) -> set[int]:
    """The processes in one directory.

    cgroup.procs of a threaded group cannot be read (cgroup-v2.rst, "Threads"): it has threads, maybe without their process.
    """
    try:
        return {int(pid) for pid in _read(os.path.join(directory, "cgroup.procs")).split()}
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    found = set()
    for thread in _read(os.path.join(directory, "cgroup.threads")).split():
        for line in _read(f"/proc/{int(thread)}/status").splitlines():
            if line.startswith(b"Tgid:"):
                found.add(int(line.split()[1]))
    return found


def tree_populated(directory: str) -> bool:
    """Whether any process lives in `directory` or below."""
    events = read_flat(os.path.join(directory, "cgroup.events"))
    return bool(events["populated"]) if "populated" in events else bool(tree_procs(directory))


def kill_tree(directory: str) -> bool:
    """SIGKILL everything in `directory` and below; True if there was nothing to kill."""
    if not tree_populated(directory):
        return True
    try:
        write(os.path.join(directory, "cgroup.kill"), "1")
    except OSError as error:  # v1, or v2 before Linux 5.14; or a group that its processes have made a threaded one
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise
        _freeze(directory, True)
        for pid in tree_procs(directory):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _freeze(directory, False)
    else:
        _freeze(directory, False)  # a frozen v2 group dies anyway; a frozen group must not be left behind
    return not tree_populated(directory)


def remove_tree(directory: str) -> bool:
    """rmdir `directory` and what is below; False if one of them is busy."""
    for path in walk(directory):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
    return True


def read_flat(path: str) -> dict[str, int]:
    """A "flat keyed" file: one `key number` a line; empty if it is not there."""
    found: dict[str, int] = {}
    for line in _read(path).splitlines():
        key, _, value = line.partition(b" ")
        if value.isdigit():
            found[key.decode()] = int(value)
    return found


def write(path: str, value: str) -> None:
    """Write a control file; FileNotFoundError if the group or the file is not there, for nothing is created."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = path  # "No space left on device" is a cpuset without CPUs, and no disk
        raise
    finally:
        os.close(fd)


def _freeze(directory: str, frozen: bool) -> None:
    """Freeze or thaw, whichever interface is there; a hierarchy without a freezer goes without."""
    for name, value in (
        ("freezer.state", "FROZEN" if frozen else "THAWED"),
        ("cgroup.freeze", str(int(frozen))),
    ):
        try:
            write(os.path.join(directory, name), value)
        except OSError:
            continue


def _inherit_cpuset(directory: str) -> None:
    """A fresh v1 cpuset is empty and takes no process until it has CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        path = os.path.join(directory, name)
        if not _read(path).strip():
            write(path, _read(os.path.join(os.path.dirname(directory), name)).decode().strip())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return b""
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group went while its file was open
            return b""
        raise
