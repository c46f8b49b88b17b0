"""What several plugins ask for, put together; who contradicts an earlier plugin is told so.

The rules are those of NRI's own implementation (github.com/containerd/nri, pkg/adaptation/result.go), with these
differences, where that one loses what a plugin has said: a variable or device of the container itself that is removed is
removed; a map's entry is either removed or set, never both; an update's limit of processes is the update's; a plugin sees
in the container what earlier ones have removed; RDT that is removed and set anew keeps nothing of the container's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from proto import nri_pb2 as nri
from runtime.nri.errors import Conflict
from runtime.nri.owners import REMOVAL, Owners, removed
from runtime.nri.resources import Merger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HOOKS: Final = ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop")

SIMPLE: Final = {
    "cgroups_path": nri.CgroupsPath,
    "oom_score_adj": nri.OomScoreAdj,
    "io_priority": nri.IoPriority,
    "seccomp_policy": nri.SeccompPolicy,
    "scheduler": nri.LinuxSched,
    "memory_policy": nri.MemoryPolicy,
}
"""Fields of LinuxContainerAdjustment that one plugin sets as a whole."""

RDT: Final = {"clos_id": nri.RdtClosID, "schemata": nri.RdtSchemata, "enable_monitoring": nri.RdtEnableMonitoring}

ENTRIES: Final = 64
"""That a plugin may name of what there are few kinds of: resource limits, namespaces, sizes of pages. Each is compared with
all others, and nothing else goes on in the daemon meanwhile."""

FILES: Final = 1024
"""Of a control group, likewise."""

UPDATES: Final = 4096
"""Of other containers, in one reply: more than a node has."""

MAPS: Final = frozenset((nri.Annotations, nri.Sysctl, nri.LinuxNetDevices))
"""What removes an entry of these owns it, whether or not a plugin has set it."""


class Updates:
    """Updates and evictions of containers that the request is not about, merged by container."""

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self.updates: dict[str, nri.ContainerUpdate] = {}
        self.evictions: dict[str, nri.ContainerEviction] = {}

    def update(self, plugin: str, updates: Sequence[nri.ContainerUpdate]) -> None:
        """Raises `Conflict`, but not for an update that may fail, which is then left out."""
        _require_few(plugin, "updates", len(updates), UPDATES)
        for asked in updates:
            known = self.updates.get(asked.container_id)
            merged = nri.ContainerUpdate(container_id=asked.container_id, ignore_failure=asked.ignore_failure)
            if known is not None:
                merged.CopyFrom(known)
                merged.ignore_failure = known.ignore_failure and asked.ignore_failure
            had, wanted = merged.linux.resources, asked.linux.resources
            _require_few(plugin, "sizes of huge pages", len(had.hugepage_limits) + len(wanted.hugepage_limits))
            _require_few(plugin, "files of a control group", len(had.unified) + len(wanted.unified), FILES)
            claimed = nri.FieldOwners()
            claimed.CopyFrom(self.owners.message.owners[asked.container_id])
            merger = Merger(self.owners, asked.container_id, plugin)
            try:
                merger.update(asked.linux.resources, merged.linux.resources)
            except Conflict:
                if not asked.ignore_failure:
                    raise
                self.owners.message.owners[asked.container_id].CopyFrom(claimed)
                continue
            self.updates[asked.container_id] = merged

    def evict(self, evictions: Iterable[nri.ContainerEviction]) -> None:
        """The first reason counts."""
        for asked in evictions:
            if asked.container_id not in self.evictions:
                self.evictions[asked.container_id] = asked


class CreateResult:
    """What plugins make of a container that is being created. After a `Conflict` it is of no use any more."""

    def __init__(self, pod: nri.PodSandbox, container: nri.Container) -> None:
        self.pod = pod
        self.pristine = container
        """As it would be without plugins."""
        self.container = container
        """As the next plugin is to see it; a copy as soon as one wants something of it."""
        self._owners = Owners()
        self._others = Updates(self._owners)
        self._adjustment = nri.ContainerAdjustment()
        self._entries: dict[int, dict[str, Any]] = {}
        """By field and key: what plugins have set, None for what they have removed."""

    @property
    def adjustment(self) -> nri.ContainerAdjustment:
        """All plugins' adjustments, merged; of no size if nobody wants anything."""
        merged = nri.ContainerAdjustment()
        merged.CopyFrom(self._adjustment)
        for key, value in self._entries.get(nri.Annotations, {}).items():
            merged.annotations[_written(key, value)] = value or ""
        for key, value in self._entries.get(nri.Sysctl, {}).items():
            merged.linux.sysctl[_written(key, value)] = value or ""
        for key, value in self._entries.get(nri.LinuxNetDevices, {}).items():
            merged.linux.net_devices[_written(key, value)].CopyFrom(value or nri.LinuxNetDevice())
        for key, value in self._entries.get(nri.Mounts, {}).items():
            merged.mounts.append(value or nri.Mount(destination=REMOVAL + key))
        for key, value in self._entries.get(nri.Env, {}).items():
            merged.env.append(value or nri.KeyValue(key=REMOVAL + key))
        for key, value in self._entries.get(nri.Devices, {}).items():
            merged.linux.devices.append(value or nri.LinuxDevice(path=REMOVAL + key))
        return merged

    @property
    def updates(self) -> list[nri.ContainerUpdate]:
        """For other containers, one for each."""
        return [*self._others.updates.values()]

    @property
    def evictions(self) -> list[nri.ContainerEviction]:
        """Of other containers, one for each."""
        return [*self._others.evictions.values()]

    @property
    def owners(self) -> nri.OwningPlugins:
        """Who has set what."""
        return self._owners.message

    def request(self) -> nri.CreateContainerRequest:
        """For the next plugin."""
        return nri.CreateContainerRequest(pod=self.pod, container=self.container)

    def validation(self, plugins: Iterable[tuple[str, str]]) -> nri.ValidateContainerAdjustmentRequest:
        """For validators, after all plugins have answered. `plugins`: name and index of each that was asked."""
        return nri.ValidateContainerAdjustmentRequest(
            pod=self.pod,
            container=self.pristine,
            adjust=self.adjustment,
            update=self.updates,
            owners=self.owners,
            plugins=[nri.PluginInstance(name=name, index=index) for name, index in plugins],
        )

    def add(self, plugin: str, reply: nri.CreateContainerResponse) -> None:
        """Take a plugin's reply. Raises `Conflict`."""
        if reply.adjust.ByteSize() and self.container is self.pristine:
            self.container = nri.Container()
            self.container.CopyFrom(self.pristine)
        asked, view = reply.adjust, self.container
        _require_few(plugin, "resource limits", len(asked.rlimits))
        _require_few(plugin, "namespaces", len(asked.linux.namespaces))
        _require_few(plugin, "sizes of huge pages", len(asked.linux.resources.hugepage_limits))
        self._map(nri.Annotations, plugin, asked.annotations, view.annotations)
        self._mounts(plugin, asked.mounts)
        self._env(plugin, asked.env)
        self._args(plugin, asked.args)
        self._hooks(plugin, asked.hooks)
        if asked.HasField("linux"):
            self._linux(plugin, asked.linux)
        self._rlimits(plugin, asked.rlimits)
        for device in asked.CDI_devices:
            self._claim(nri.CdiDevices, plugin, device.name)
            self._adjustment.CDI_devices.append(device)
        own = view.id
        if own in {update.container_id for update in reply.update} | {eviction.container_id for eviction in reply.evict}:
            raise Conflict(f"NRI: plugin {plugin} updates or evicts container {own} in the answer to its creation")
        self._others.update(plugin, reply.update)
        self._others.evict(reply.evict)

    def _linux(self, plugin: str, asked: nri.LinuxContainerAdjustment) -> None:
        view, merged = self.container.linux, self._adjustment.linux
        self._devices(plugin, asked.devices)
        merger = Merger(self._owners, self.container.id, plugin)
        if asked.HasField("resources"):
            merger.adjust(asked.resources, merged.resources, view.resources)
        for name, field in SIMPLE.items():
            if _is_set(asked, name):
                self._claim(field, plugin)
                for target in (merged, view) if name in view.DESCRIPTOR.fields_by_name else (merged,):
                    _assign(target, name, getattr(asked, name))
        self._namespaces(plugin, asked.namespaces)
        self._map(nri.Sysctl, plugin, asked.sysctl, view.sysctl)
        self._map(nri.LinuxNetDevices, plugin, asked.net_devices, view.net_devices)
        if asked.HasField("rdt"):
            self._rdt(plugin, asked.rdt)

    def _claim(self, field: nri.Field, plugin: str, key: str | None = None) -> None:
        self._owners.claim(self.container.id, field, plugin, key)

    def _take(self, field: nri.Field, plugin: str, asked: Sequence[tuple[str, Any]]) -> tuple[set[str], dict[str, Any]]:
        """Keys that the plugin removes or replaces, and what it sets."""
        entries = self._entries.setdefault(field, {})
        gone = {key for marked, _ in asked if (key := removed(marked)) is not None}
        added: dict[str, Any] = {}
        for key in sorted(gone):
            if entries.get(key) is not None or field in MAPS:
                self._owners.clear(self.container.id, field, plugin, key)
            entries.pop(key, None)
            entries[key] = None
        for key, value in asked:
            if removed(key) is None:
                self._claim(field, plugin, key)
                entries.pop(key, None)
                entries[key] = added[key] = value
        return gone | added.keys(), added

    def _map(self, field: nri.Field, plugin: str, asked: Any, view: Any) -> None:
        if not asked:
            return
        gone, added = self._take(field, plugin, sorted(asked.items(), key=lambda pair: str(pair[0])))
        for key in gone:
            view.pop(key, None)
        for key, value in added.items():
            if isinstance(value, str):
                view[key] = value
            else:
                view[key].CopyFrom(value)

    def _mounts(self, plugin: str, asked: Sequence[nri.Mount]) -> None:
        if not asked:
            return
        gone, added = self._take(nri.Mounts, plugin, [(mount.destination, mount) for mount in asked])
        _replace(self.container.mounts, [m for m in self.container.mounts if m.destination not in gone] + [*added.values()])

    def _env(self, plugin: str, asked: Sequence[nri.KeyValue]) -> None:
        if not asked:
            return
        gone, added = self._take(nri.Env, plugin, [(pair.key, pair) for pair in asked])
        kept = [entry for entry in self.container.env if entry.partition("=")[0] not in gone]
        _replace(self.container.env, kept + [f"{pair.key}={pair.value}" for pair in added.values()])

    def _devices(self, plugin: str, asked: Sequence[nri.LinuxDevice]) -> None:
        if not asked:
            return
        view = self.container.linux.devices
        gone, added = self._take(nri.Devices, plugin, [(device.path, device) for device in asked])
        _replace(view, [device for device in view if device.path not in gone] + [*added.values()])

    def _args(self, plugin: str, asked: Sequence[str]) -> None:
        if not asked:
            return
        if not asked[0]:
            self._owners.clear(self.container.id, nri.Args, plugin)
            asked = asked[1:]
        self._claim(nri.Args, plugin)
        _replace(self._adjustment.args, asked)
        _replace(self.container.args, asked or self.pristine.args)

    def _hooks(self, plugin: str, asked: nri.Hooks) -> None:
        for stage in HOOKS:
            if added := getattr(asked, stage):
                getattr(self._adjustment.hooks, stage).extend(added)
                getattr(self.container.hooks, stage).extend(added)
        if any(getattr(asked, stage) for stage in HOOKS):
            self._owners.join(self.container.id, nri.OciHooks, plugin)

    def _rlimits(self, plugin: str, asked: Iterable[nri.POSIXRlimit]) -> None:
        for limit in asked:
            self._claim(nri.Rlimits, plugin, limit.type)
            self._adjustment.rlimits.append(limit)
            _replace(self.container.rlimits, [old for old in self.container.rlimits if old.type != limit.type] + [limit])

    def _namespaces(self, plugin: str, asked: Iterable[nri.LinuxNamespace]) -> None:
        view = self.container.linux.namespaces
        for namespace in asked:
            gone = removed(namespace.type)
            kind = namespace.type if gone is None else gone
            self._claim(nri.Namespace, plugin, kind)
            self._adjustment.linux.namespaces.append(namespace)
            _replace(view, [other for other in view if other.type != kind] + ([namespace] if gone is None else []))

    def _rdt(self, plugin: str, asked: nri.LinuxRdt) -> None:
        merged, view = self._adjustment.linux.rdt, self.container.linux.rdt
        if asked.remove:
            for field in RDT.values():
                self._owners.clear(self.container.id, field, plugin)
            merged.Clear()
            view.Clear()
            merged.remove = True
        for name, field in RDT.items():
            if asked.HasField(name):
                self._claim(field, plugin)
                for target in (merged, view):
                    getattr(target, name).CopyFrom(getattr(asked, name))


class UpdateResult:
    """What plugins make of an update of a container, or of none (StopContainer)."""

    def __init__(self, container: nri.Container | None = None, resources: nri.LinuxResources | None = None) -> None:
        self.owners = Owners()
        self._others = Updates(self.owners)
        self._id = container.id if container is not None else ""
        if resources is not None:
            own = nri.ContainerUpdate(container_id=self._id)
            own.linux.resources.CopyFrom(resources)
            self._others.updates[self._id] = own

    @property
    def resources(self) -> nri.LinuxResources:
        """Of the container that is updated: what was asked for with what the plugins have made of it."""
        return self._others.updates[self._id].linux.resources

    @property
    def updates(self) -> list[nri.ContainerUpdate]:
        """For other containers, one for each."""
        return [update for container, update in self._others.updates.items() if container != self._id]

    @property
    def evictions(self) -> list[nri.ContainerEviction]:
        """One for each container."""
        return [*self._others.evictions.values()]

    def add(self, plugin: str, reply: nri.UpdateContainerResponse | nri.StopContainerResponse) -> None:
        """Take a plugin's reply. Raises `Conflict`."""
        self._others.update(plugin, reply.update)
        if isinstance(reply, nri.UpdateContainerResponse):
            self._others.evict(reply.evict)


class StopResult(UpdateResult):
    """What plugins ask for when a container stops: updates of others."""


def _require_few(plugin: str, what: str, count: int, most: int = ENTRIES) -> None:
    if count > most:
        raise Conflict(f"NRI: plugin {plugin} names {count} {what}, more than {most}")


def _written(key: str, value: Any) -> str:
    return key if value is not None else REMOVAL + key


def _is_set(message: Any, name: str) -> bool:
    value = getattr(message, name)
    return bool(value) if isinstance(value, str) else message.HasField(name)


def _assign(target: Any, name: str, value: Any) -> None:
    if isinstance(value, str):
        setattr(target, name, value)
    else:
        getattr(target, name).CopyFrom(value)


def _replace(target: Any, items: Iterable[Any]) -> None:
    """A repeated field's items may be among the new ones: they are copied first."""
    copied = [item if isinstance(item, str) else type(item).FromString(item.SerializeToString()) for item in items]
    del target[:]
    target.extend(copied)
