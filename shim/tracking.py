"""Which cgroups hold a container's processes, and how each of them is killed for certain.

    mode     the container                                  an exec of it
    v2       its own cgroup                                 exec-N below it, by the runtime's --cgroup
    hybrid   its v1 cgroups, and <cgroup2>/crisp/ID/init    <cgroup2>/crisp/ID/exec-N

On hybrid hosts the limits are v1's, but no v1 controller kills a tree of processes at once. So each runtime call starts in
a cgroup2 directory that nothing else knows of: its children inherit it, however often they fork. With v2 the call starts in
such a directory too: until the OCI runtime has moved the process into the container's group, and as long as a hook runs,
there is no other way to them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress

from kernel import cgroups
from proto.errors import failed_precondition
from shim.loop import Loop

CALLS = "call"
TRIED = 8
"""Of the groups that could not be removed, so many are tried again after each exec."""
TAKEN = 1000  # names that a container may have taken before an exec is refused
FOLDER = "crisp"  # below the cgroup2 mount of a hybrid host


class Tracking:
    """The cgroups of one container."""

    def __init__(self, hierarchies: cgroups.Hierarchies, path: str, identity: str) -> None:
        self.group = hierarchies.group(path)
        self._v2 = hierarchies.mode is cgroups.Mode.V2
        self._base = ""
        if hierarchies.unified:
            self._base = os.path.join(hierarchies.unified, FOLDER, identity)
        self._execs = 0
        self._busy: dict[str, None] = {}  # groups of execs that have ended, with processes in them; the oldest try first

    def for_init(self) -> str:
        """The directory in which `create` is to start, made now; "" for none."""
        return self._make("init") if self._base else ""

    def for_call(self) -> str:
        """The directory in which a call starts that makes no process in the container; "" for none."""
        return self._make(CALLS) if self._base else ""

    def for_exec(self) -> tuple[str, str, str, str]:
        """Make a group for one exec: (name, where the call starts, the runtime's --cgroup, the directory to kill).

        On v2 it lies below the container's own group, wherever the container's processes have moved to in the meantime.
        """
        if self._v2:
            name, directory = self._make_below_container()
            return name, self._make(name), name, directory
        name = self._next_exec()
        if self._base:
            directory = self._make(name)
            return name, directory, "", directory
        return name, "", "", ""

    def _next_exec(self) -> str:
        self._execs += 1
        return f"exec-{self._execs}"

    def _make_below_container(self) -> tuple[str, str]:
        """A new group: a container that manages its own cgroups may have taken names, and none of its groups is used."""
        for _ in range(TAKEN):
            name = self._next_exec()
            directory = os.path.join(self.group.directory(), name)
            with suppress(FileExistsError):
                os.mkdir(directory)
                return name, directory
        raise failed_precondition(f"the container has taken {TAKEN} names of groups for commands in it")

    def _make(self, name: str) -> str:
        directory = f"{self._base}/{name}"
        while True:
            try:
                os.mkdir(directory)
            except FileExistsError:
                return directory
            except FileNotFoundError:
                self._make_base()
                continue
            return directory

    def _make_base(self) -> None:
        """Make the container's folder; not by `makedirs`, which is more to look at."""
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(self._base))
        with suppress(FileExistsError, FileNotFoundError):  # the last container's shim has just removed the folder above
            os.mkdir(self._base)

    def kill_exec(self, name: str, directory: str) -> bool:
        """SIGKILL an exec with all it has started, and the call that starts it; True once there is nothing left."""
        call = cgroups.kill_tree(os.path.join(self._base, name)) if self._base else True
        return cgroups.kill_tree(directory) and call

    def remove_exec(self, name: str, directory: str) -> None:
        """Remove what `for_exec` has made, unless the process has left others behind: then it goes with the container."""
        mine = {directory, os.path.join(self._base, name)} if self._base else {directory}
        # Those of earlier execs too: what they have left behind may have ended since.
        tried = [*mine, *itertools.islice(self._busy, TRIED)]
        for path in tried:
            self._busy.pop(path, None)
            if not cgroups.remove_tree(path):
                self._busy[path] = None

    def kill(self, *, spare_calls: bool = False) -> bool:
        """SIGKILL everything the container has; True once there is nothing left.

        `spare_calls`: but not the runtime's calls that make no process, of which one is the delete.
        """
        tracked = []
        if self._base:
            names = [name for name in self._names() if name != CALLS] if spare_calls else [""]
            tracked = [cgroups.kill_tree(os.path.join(self._base, name)) for name in names]
        return self.group.kill() and all(tracked)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._base) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def remove(self) -> bool:
        """Remove every directory; False while one is busy."""
        tracked = True
        if self._base:
            tracked = cgroups.remove_tree(self._base)
            with suppress(OSError):  # other containers are in it, or it is gone
                os.rmdir(os.path.dirname(self._base))
        return self.group.remove() and tracked


class opened_procs:
    """The cgroup.procs of a directory, opened for a child that joins it from a place where it can't be seen; -1 for ""."""

    def __init__(self, directory: str) -> None:
        self._fd = os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) if directory else -1

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _tried(done: Callable[[], bool]) -> bool:
    try:
        return done()
    except OSError:  # no descriptor or memory to look with: not yet
        return False


async def until(loop: Loop, done: Callable[[], bool], limit: float) -> bool:
    """Call `done` until it is true, at growing intervals, for at most `limit` seconds."""
    waited, pause = 0.0, 0.001
    while not _tried(done):
        if waited >= limit:
            return False
        await loop.sleep(pause)
        waited += pause
        pause = min(pause * 2, 0.1)
    return True
