"""Whether the OOM killer has ended processes of a container, also when its cgroup is gone before anybody could read that.

With cgroup v2 and systemd the container's cgroup is a scope, which systemd removes as soon as it is empty: mostly before the
shim has reaped the container's init. memory.events of the group above, the pod's, counts the kills below it and outlives it.

    look      the container's own count. If there is none yet, the pod's is the base: all of it is others'
    the end   own count, if it can be read; else what the pod's has grown by since the last look, without what
              the neighbours' groups have counted since

A look follows each notice that the kernel gives of either file, so that a neighbour's kill is in the base at once.
"""

from __future__ import annotations

import os
from contextlib import suppress

from kernel import inotify
from kernel.cgroups import Group, Mode, read_flat
from shim.loop import Loop

EVENTS = "memory.events"
TRIES = 8
"""How often the counts are read until two readings agree; a group that kills without pause is read all the same."""


class OomWatch:
    """Looks at one container's group from its creation to its end."""

    def __init__(self, loop: Loop, group: Group) -> None:
        self._loop = loop
        self._group = group
        self._own = group.directory() if group.hierarchies.mode is Mode.V2 else ""
        self._above = os.path.dirname(self._own)
        self.killed = False
        """Whether a kill was seen."""
        self._base = 0
        self._neighbours: dict[str, int] = {}
        self._notices: list[int] = []

    def begin(self) -> None:
        """The group is there, and nothing of the container has run yet."""
        if not self._own or not os.path.exists(os.path.join(self._own, EVENTS)):
            return
        self._look()
        for directory in (self._own, self._above):
            with suppress(OSError):  # no room for another watch: the counts are read at the end
                notice = inotify.watch(os.path.join(directory, EVENTS), inotify.IN_MODIFY)
                self._loop.add(notice, self._noticed)
                self._notices.append(notice)

    def end(self) -> bool:
        """Whether there was a kill; stops looking."""
        self._stop()
        if not self._own:
            return self._group.oom_kills() > 0
        own = kills(self._own)
        if own is not None:
            return self.killed or own > 0
        return self.killed or self._lost_kills() > 0

    def _noticed(self, _events: int) -> None:
        for notice in self._notices:
            inotify.drain(notice)
        self._look()
        if self.killed:
            self._stop()

    def _look(self) -> None:
        above, neighbours = self._others()
        own = kills(self._own)
        if own:
            self.killed = True
        elif own == 0:  # not yet when `above` was read, therefore
            self._base, self._neighbours = above, neighbours

    def _lost_kills(self) -> int:
        """Kills that nobody but the container can have had, now that its group cannot be read."""
        above, neighbours = self._others()
        others = sum(count - self._neighbours.get(path, 0) for path, count in neighbours.items())
        return above - self._base - others

    def _others(self) -> tuple[int, dict[str, int]]:
        """The pod's count, and those of the other groups in it, as of one moment."""
        neighbours = self._neighbour_counts()
        for _ in range(TRIES):
            above = kills(self._above) or 0
            before, neighbours = neighbours, self._neighbour_counts()
            if before == neighbours:
                break
        return above, neighbours

    def _neighbour_counts(self) -> dict[str, int]:
        try:
            with os.scandir(self._above) as entries:
                paths = [e.path for e in entries if e.is_dir(follow_symlinks=False) and e.path != self._own]
        except OSError:
            return {}
        return {path: count for path in paths if (count := kills(path)) is not None}

    def _stop(self) -> None:
        for notice in self._notices:
            self._loop.remove(notice)
            os.close(notice)
        self._notices = []


def kills(directory: str) -> int | None:
    """The count of a group and those below it; None if the group is gone or has no such count."""
    return read_flat(os.path.join(directory, EVENTS)).get("oom_kill")
