"""Pod networks by CNI plugins.

A pod's life:  record stored → plugins ADD → results stored → … → plugins DEL → record removed. The record is there before
anything is done and goes after everything is undone, so an ADD that failed, hung or was cut short by the daemon's death is
always followed by a DEL: at once, at the next start, or from time to time until it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from kernel import namespaces
from proto.errors import Code, CrispError
from runtime.network import links
from runtime.network.cni import chain, protocol
from runtime.network.cni.attachments import Attachment, Record
from runtime.network.cni.capabilities import arguments, capabilities
from runtime.network.cni.directory import Directory
from runtime.network.cni.plugins import Plugins
from runtime.network.cni.readiness import Statuses
from runtime.network.cni.stragglers import Stragglers
from runtime.network.cni.template import Template
from runtime.network.config import CniConfig, HandlerNetworks
from runtime.network.netlink_thread import NetlinkThread
from runtime.network.seam import NOT_READY, LeaseStore, NetworkRequest, NetworkResult, Readiness

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 5.0
"""How long a configuration file that could not be used is left alone before it is tried again: its plugin may be there
by then."""

BUSY_SECONDS: Final = 1.0
"""After which garbage collection looks again whether no plugin is running."""


class CniNetwork:
    """A `PodNetwork` of plugins."""

    def __init__(
        self,
        config: CniConfig,
        store: LeaseStore,
        state: Path,
        pod_cidrs: Sequence[str] = (),
        handlers: Mapping[str, HandlerNetworks] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self._store = store
        self._pod_cidrs = tuple(pod_cidrs)
        self._plugins = Plugins(config.bin_dirs, config.plugin_seconds)
        self._default = Directory(config.conf_dir, config.max_conf_num, self._plugins)
        self._handlers = {
            name: Directory(handler.conf_dir, handler.max_conf_num, self._plugins) for name, handler in handlers.items()
        }
        self._template = Template(Path(config.conf_template) if config.conf_template else None, self._default)
        self._statuses = Statuses(self._plugins, config.status_seconds)
        self._stragglers = Stragglers(state)
        self._used: set[str] = set()
        """Networks to which this state has attached pods. Others' pods may be in the same networks, with the same plugins,
        until this runtime takes over: garbage collection in its name would take their addresses away."""
        self._records: dict[str, Record] = {}
        self._thread = NetlinkThread("loopback")
        self._running = 0
        """Plugin calls that garbage collection must not overlap."""
        self._collecting = asyncio.Lock()
        self._upkeep: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        """There are condemned records."""
        self._tried_at = 0.0
        self.seen = False
        """Whether there has been a network to use since the start."""

    async def start(self) -> None:
        """Load the records, read the directories and follow them."""
        for sandbox_id, document in self._store.items():
            try:
                self._records[sandbox_id] = Record.parse(document)
            except (KeyError, TypeError, ValueError) as error:
                log.error("record of CNI attachments cannot be read", sandbox=sandbox_id, error=str(error))
        self._used.update(attachment.network.name for record in self._records.values() for attachment in record.attachments)
        await self.set_pod_cidrs(self._pod_cidrs)
        for directory in (self._default, *self._handlers.values()):
            await directory.watch(self._changed)
            await directory.read()
        await self._changed()

    async def _changed(self) -> None:
        self.seen = self.seen or bool(self._default.networks)
        self._statuses.forget()

    async def close(self) -> None:
        """Follow the directories no more; the pods keep their network."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
        await self._statuses.close()
        for directory in (self._default, *self._handlers.values()):
            await directory.close()
        await self._thread.close()

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """What the cluster gave this node; it goes to the plugins, and into the template."""
        self._pod_cidrs = tuple(cidrs)
        if cidrs:
            await self._template.render(cidrs)

    def serves(self, handler: str) -> bool:
        """Whether a runtime handler has networks of its own."""
        return handler in self._handlers

    # --- attaching and detaching ---------------------------------------------------------------------------------

    async def attach(self, request: NetworkRequest) -> NetworkResult:
        """Have the plugins connect a sandbox to each of its handler's networks."""
        if (old := self._records.get(request.sandbox_id)) is not None:
            await self._undo(request.sandbox_id, old)
        directory = self._handlers.get(request.runtime_handler, self._default)
        if not directory.networks:
            raise CrispError(Code.UNAVAILABLE, f"the pod has no network: {self._why_none(directory)}")
        record = self._record(request, directory)
        self._records[request.sandbox_id] = record
        try:
            await self._store.put(request.sandbox_id, record.document())
            await self._add(request.sandbox_id, record)
            await self._store.put(request.sandbox_id, record.document())
            return _result(record)
        except BaseException:
            await asyncio.shield(self._give_up(request.sandbox_id, record))
            raise

    async def _give_up(self, sandbox_id: str, record: Record) -> None:
        """Undo what was just begun, while the pod's namespace is still there."""
        record.condemned = True
        await self._try_to_undo(sandbox_id, record)
        if sandbox_id in self._records:
            await self._condemn(sandbox_id, record)

    def _record(self, request: NetworkRequest, directory: Directory) -> Record:
        record = Record(request.netns_path, arguments(request))
        for number, network in enumerate(directory.networks):
            told = capabilities(request, self._pod_cidrs, first=number == 0)
            record.attachments.append(Attachment(f"eth{number}", network, told))
        return record

    async def _add(self, sandbox_id: str, record: Record) -> None:
        async with record.lock, self._operation():
            await self._thread.run(links.set_up_loopback(record.netns))
            with self._stragglers.guard(sandbox_id) as held:
                for attachment in record.attachments:
                    self._used.add(attachment.network.name)
                    target = protocol.Target(sandbox_id, record.netns, attachment.interface, record.arguments)
                    attachment.result = await chain.add(
                        self._plugins, attachment.network, target, attachment.capabilities, (held,)
                    )

    async def detach(self, request: NetworkRequest) -> None:
        """Have the plugins disconnect a sandbox. Raises what they say, and is to be repeated then.

        A sandbox that was never connected in full, or whose namespace went with a reboot, has nobody who waits for this,
        least of all the daemon that starts: it is disconnected in the background, as soon as the plugins can.
        """
        record = self._records.get(request.sandbox_id)
        if record is None or record.condemned:
            return
        if record.complete and namespaces.is_pinned(record.netns):
            await asyncio.shield(self._undo(request.sandbox_id, record))
        else:
            await self._condemn(request.sandbox_id, record)
            self._wake.set()

    async def _condemn(self, sandbox_id: str, record: Record) -> None:
        record.condemned = True
        await self._store.put(sandbox_id, record.document())

    async def _undo(self, sandbox_id: str, record: Record) -> None:
        first: CrispError | None = None
        async with record.lock:
            if sandbox_id not in self._records:
                return
            if record.inherited:
                await self._stragglers.gone(sandbox_id)
            netns = record.netns if namespaces.is_pinned(record.netns) else ""
            async with self._operation():
                for attachment in reversed(record.attachments):
                    target = protocol.Target(sandbox_id, netns, attachment.interface, record.arguments)
                    told = attachment.capabilities
                    try:
                        await chain.delete(self._plugins, attachment.network, target, told, attachment.result)
                    except CrispError as error:
                        first = first or error
            if first is not None:
                raise first
            await self._store.delete(sandbox_id)
            del self._records[sandbox_id]

    async def _try_to_undo(self, sandbox_id: str, record: Record) -> None:
        """Undo it now if that works; else it stays condemned and is tried again from time to time."""
        try:
            await self._undo(sandbox_id, record)
        except CrispError as error:
            log.warning("CNI attachment cannot be undone yet", sandbox=sandbox_id, reason=error.message)

    @asynccontextmanager
    async def _operation(self) -> AsyncIterator[None]:
        """Around ADD and DEL, which must not overlap garbage collection."""
        async with self._collecting:
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    # --- readiness ------------------------------------------------------------------------------------------------

    async def check(self) -> Readiness:
        """Whether the next pod would get a network, as far as configuration and plugins tell."""
        now = asyncio.get_running_loop().time()
        if (self._default.problems or not self._default.networks) and now - self._tried_at > RETRY_SECONDS:
            self._tried_at = now
            await self._default.read()
            await self._changed()
        networks = self._default.networks
        if not networks:
            return Readiness(False, NOT_READY, self._why_none(self._default))
        if complaint := await self._statuses.complaint(networks):
            return Readiness(False, NOT_READY, complaint)
        if problems := self.problems():
            return Readiness(True, "CNIConfigIgnored", problems)
        return Readiness(True)

    def problems(self) -> str:
        """Files that are not used, and why; empty if there are none."""
        parts = [
            f"{directory.path / name}: {reason}"
            for directory in (self._default, *self._handlers.values())
            for name, reason in directory.problems.items()
        ]
        return "; ".join([*parts, self._template.problem] if self._template.problem else parts)

    def _why_none(self, directory: Directory) -> str:
        reason = f"no usable CNI network configuration in {directory.path}"
        problems = self.problems()
        return f"{reason}: {problems}" if problems else reason

    # --- upkeep ---------------------------------------------------------------------------------------------------

    async def sweep(self, live_sandbox_ids: set[str]) -> None:
        """Undo attachments of sandboxes that are no more, and see to the rest: in the background, since plugins may need
        what is only there when the daemon serves."""
        for sandbox_id, record in self._records.items():
            if sandbox_id not in live_sandbox_ids:
                await self._condemn(sandbox_id, record)
        self._wake.set()
        if self._upkeep is None:
            self._upkeep = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        await self._undo_condemned()
        await self._check_attachments()
        while True:
            await self._collect_garbage()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.gc_seconds):
                    await self._wake.wait()
            await self._undo_condemned()

    async def _undo_condemned(self) -> None:
        self._wake.clear()
        condemned = [(sandbox_id, record) for sandbox_id, record in self._records.items() if record.condemned]
        await asyncio.gather(*(self._try_to_undo(sandbox_id, record) for sandbox_id, record in condemned))

    async def _check_attachments(self) -> None:
        """CHECK what an earlier daemon has left: a node's firewall may have been reset in between."""
        for sandbox_id, record in list(self._records.items()):
            async with record.lock:
                if not record.condemned and sandbox_id in self._records:
                    await self._check_record(sandbox_id, record)

    async def _check_record(self, sandbox_id: str, record: Record) -> None:
        for attachment in record.attachments:
            if attachment.result is None:
                continue
            target = protocol.Target(sandbox_id, record.netns, attachment.interface, record.arguments)
            told = attachment.capabilities
            try:
                await chain.check(self._plugins, attachment.network, target, told, attachment.result)
            except CrispError as error:
                log.warning("a pod's network is not as it was made", sandbox=sandbox_id, reason=error.message)

    async def _collect_garbage(self) -> None:
        """GC: "the runtime must not call it while an ADD or DEL is under way" for the same network. Networks to which this
        state has attached nothing are others', and all that is in use there."""
        while True:
            await self._collecting.acquire()
            if not self._running:
                break
            self._collecting.release()
            await asyncio.sleep(BUSY_SECONDS)
        try:
            directories = (self._default, *self._handlers.values())
            for network in {network.name: network for d in directories for network in d.networks}.values():
                if network.name not in self._used:
                    continue
                valid = [
                    (sandbox_id, attachment.interface)
                    for sandbox_id, record in self._records.items()
                    for attachment in record.attachments
                    if attachment.network.name == network.name and not record.condemned
                ]
                for complaint in await chain.collect_garbage(self._plugins, network, valid):
                    log.warning("CNI garbage collection", reason=complaint)
        finally:
            self._collecting.release()

    async def destroy(self) -> None:
        """Detach every sandbox; what the plugins share is theirs."""
        for sandbox_id, record in list(self._records.items()):
            await self._undo(sandbox_id, record)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._stragglers.directory)


def _result(record: Record) -> NetworkResult:
    first = record.attachments[0]
    assert first.result is not None
    ips = protocol.addresses(first.result, first.interface)
    if not ips:
        raise CrispError(Code.INTERNAL, f"network {first.network.name}: its plugins gave {first.interface} no address")
    networks = [
        {"name": attachment.network.name, "interface": attachment.interface, "result": attachment.result}
        for attachment in record.attachments
    ]
    outside = [
        str(interface["name"])
        for attachment in record.attachments
        for interface in (attachment.result or {}).get("interfaces") or []
        if not interface.get("sandbox") and interface.get("name")
    ]
    detail = {"network": "cni", "hostInterfaces": outside, "networks": networks}
    return NetworkResult(ips=ips, interface=first.interface, detail=detail)
