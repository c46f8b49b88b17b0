"""The daemon: puts the rooms together, recovers, serves, and ends without disturbing the pods.

Order of start: lock → directories → fork server → state → images → network → handlers → recovery → NRI plugins →
streaming → gRPC. What was started is ended in the reverse order, by one exit stack, also if a later step fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import grp
import importlib
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from kernel import modes, mounts
from proto import admin_pb2, api_pb2
from proto.errors import Code, CrispError, failed_precondition, invalid
from runtime import limits, recovery, reload
from runtime.api import node_status
from runtime.api.rpc_admin import AdminService
from runtime.api.rpc_images import ImageService as ImageRpcs
from runtime.api.rpc_runtime import RuntimeService
from runtime.api.server import Boundary
from runtime.api.stream_sources import StreamSources
from runtime.host import handler_probe, host, layer_form, neighbours, systemd
from runtime.lifecycle import ContainerState
from runtime.network import rules_watch
from runtime.network.config import HandlerNetworks
from runtime.nri.plugins import Plugins
from runtime.oci import apparmor_loader, seccomp
from runtime.paths import Paths
from runtime.pods import builds, ended, plugin_world
from runtime.pods.events import EventBus
from runtime.pods.node import Node, new_executor
from runtime.pool import Pool
from runtime.shims.fork_server import ForkServer
from runtime.store.database import Store
from runtime.store.record_copies import Copies
from runtime.streaming.server import StreamingServer
from runtime.telemetry import observers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from runtime.config.settings import Config
    from runtime.host.handlers import Handlers
    from runtime.host.host import Host

    FindHandlers = Callable[[Config, Paths, Host, ForkServer], Awaitable[Handlers]]

FORK_JOBS: Final = (
    "shim.supervisor",
    "shim.sandbox",
    "shim.pause",
    "shim.host_paths",
    "shim.relabel",
    "shim.runtime_probe",
    "shim.layer_probe",
    "shim.build_mounts",
)
"""What the fork server preloads."""

log = structlog.get_logger(__name__)


async def serve(config: Config, ready: Callable[[Node], None], load: Callable[[], Config]) -> int:
    """Run until SIGTERM or SIGINT; how many containers go on without the daemon. `load` reads the configuration anew."""
    stopping, reloading = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Pool(thread_name_prefix="asyncio"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reloading.set)
    async with AsyncExitStack() as stack:
        node = await start(config, stack)
        _background(reload.follow(node, load, reloading), stack)
        _background(
            handler_probe.retry(lambda: (node.handlers, node.config), node.paths, node.host, node.fork_server), stack
        )
        _background(rules_watch.follow(node.network), stack)
        _background(ended.follow(node), stack)
        if (seconds := systemd.watchdog_seconds()) > 0:
            _background(systemd.feed_watchdog(seconds), stack)
        ready(node)
        systemd.notify("READY=1")
        await stopping.wait()
        systemd.notify("STOPPING=1")
        log.info("stopping")
        return sum(c.record.state is ContainerState.RUNNING for c in node.containers.values())
    raise AssertionError("unreachable")


async def start(config: Config, stack: AsyncExitStack) -> Node:
    """Start everything; `stack` ends it."""
    seccomp.check(config.containers.seccomp_profile)
    paths = Paths(config.root, config.state)
    stack.callback(os.close, lock(paths.lock))
    for held in neighbours.claim(_shared(config)):
        stack.callback(held.close)
    fork_server = await ForkServer.start(FORK_JOBS)
    stack.push_async_callback(fork_server.close)
    node = await assemble(config, paths, fork_server, stack, handler_probe.find)
    await apparmor_loader.load_default(node.host, config.containers.apparmor_profile)
    begin = time.monotonic()
    await recovery.recover(node)
    node.recovery_seconds = time.monotonic() - begin
    await _serve(node, stack)
    return node


def _shared(config: Config) -> list[str]:
    """What another daemon with the same defaults would use too."""
    network = config.network
    builtin = [f"bridge {network.bridge}", f"nftables table {network.table}"] if network.mode != "cni" else []
    return [f"cgroup parent {config.cgroup.parent}", *builtin]


async def assemble(
    config: Config, paths: Paths, fork_server: ForkServer, stack: AsyncExitStack, find_handlers: FindHandlers
) -> Node:
    """State, images and network of a node that has not recovered yet; the caller holds the lock, `stack` ends it all."""
    _make_directories(paths)
    measured = host.measure(config.cgroup.driver, config.root)
    # The trials of the OCI runtimes take a third of the start. They go on while half of the program is loaded, in a thread.
    finding = asyncio.ensure_future(find_handlers(config, paths, measured, fork_server))
    stack.push_async_callback(_given_up, finding)
    await asyncio.to_thread(_load_rooms)
    from imagesvc.service import ImageService  # noqa: PLC0415
    from runtime.network.auto import AutoNetwork  # noqa: PLC0415
    from runtime.store.image_records import ImageRecords  # noqa: PLC0415

    store = Store(paths.database, Copies(paths))
    stack.callback(store.close)
    blocking = new_executor()
    stack.callback(blocking.shutdown, wait=False, cancel_futures=True)
    layers = await layer_form.choose(config.images.layers, paths, fork_server)
    images = ImageService(config.images, config.root, ImageRecords(store), layers.form, str(paths.layer_mounts))
    await images.start()
    stack.push_async_callback(images.close)
    network = AutoNetwork(config.network, store.leases, paths.cni, node_status.pod_cidrs(store), _handler_networks(config))
    await network.start()
    stack.push_async_callback(network.close)
    return Node(
        config=config,
        paths=paths,
        host=measured,
        store=store,
        handlers=await finding,
        fork_server=fork_server,
        network=network,
        images=images,
        layers=layers,
        events=EventBus(),
        blocking=blocking,
        plugins=Plugins(config.nri),
    )


def _load_rooms() -> None:
    importlib.import_module("imagesvc.service")
    importlib.import_module("runtime.network.auto")


async def _given_up(work: asyncio.Future[Any]) -> None:
    """Let go of something that nobody waits for any more, if it is not done."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


def _handler_networks(config: Config) -> dict[str, HandlerNetworks]:
    return {
        name: HandlerNetworks(Path(handler.cni_conf_dir), handler.cni_max_conf_num)
        for name, handler in config.runtimes.items()
        if handler.cni_conf_dir
    }


async def _serve(node: Node, stack: AsyncExitStack) -> None:
    stack.push_async_callback(_close_shims, node)
    stack.push_async_callback(node.undoing.close)
    stack.push_async_callback(node.filters.close)
    stack.push_async_callback(node.plugins.stop)
    stack.push_async_callback(node.joiner.settle, limits.SHUTDOWN_SECONDS)
    await node.plugins.start(plugin_world.PluginWorld(node))
    streaming = StreamingServer(node.config.streaming, StreamSources(node))
    await streaming.start()
    stack.push_async_callback(streaming.stop)
    boundary = Boundary(await observers.start(node, stack))
    runtime_service = RuntimeService(node, streaming)
    stack.callback(runtime_service.close)
    boundary.add(api_pb2.DESCRIPTOR.services_by_name["RuntimeService"], runtime_service)
    boundary.add(api_pb2.DESCRIPTOR.services_by_name["ImageService"], ImageRpcs(node))
    boundary.add(admin_pb2.DESCRIPTOR.services_by_name["Admin"], AdminService(node, streaming))
    node.config.socket.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    stack.push_async_callback(builds.close, node)
    await boundary.start(str(node.config.socket), _group_id(node.config.socket_group))
    stack.callback(_unlink, node.config.socket)
    stack.push_async_callback(boundary.stop)


def _background(work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> None:
    """Run it until the daemon ends."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


async def _close_shims(node: Node) -> None:
    """Let go of the shims; they and their containers go on."""
    watchers = [c.watcher for c in node.containers.values() if c.watcher is not None]
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    for container in node.containers.values():
        if container.shim is not None:
            container.shim.close()


def lock(path: Path) -> int:
    """Take the daemon's lock; FAILED_PRECONDITION if another daemon uses these directories."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise failed_precondition(f"another crisp uses {path.parent}: stop it, or give this one its own --state") from None
    return fd


def _make_directories(paths: Paths) -> None:
    try:
        modes.own(paths.root, 0o700)
        for directory in (paths.state, paths.sandboxes, paths.bundles, paths.state / "runtimes"):
            modes.own(directory, 0o711)
        modes.own(paths.writable_layers, 0o700)
        # Rootfs mounts of the shims must not reach the host's mount namespace.
        mounts.ensure_private_mount(str(paths.bundles))
    except PermissionError as error:
        raise CrispError(Code.PERMISSION_DENIED, f"{error.filename}: {error.strerror}; crisp serve runs as root") from None
    except OSError as error:
        raise failed_precondition(f"cannot prepare {error.filename or paths.root}: {error.strerror}") from None


def _group_id(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise invalid(f"socket_group: no group {name!r}") from None


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
