"""RunPodSandbox: record → namespaces → network → files → ready.

Failpoints: sandbox.recorded, sandbox.namespaces, sandbox.network. A failure or a crash at any of them is undone by the same
teardown that StopPodSandbox and RemovePodSandbox use; until the sandbox is ready no list shows it.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

import structlog

from imagesvc.uninterrupted import to_its_end
from kernel import cgroups, lsm, own_thread
from kernel.failpoints import failpoint
from proto import api_pb2 as cri
from proto.errors import EXHAUSTED, Code, CrispError, invalid
from runtime import limits
from runtime.lifecycle import SandboxState
from runtime.network import dns
from runtime.network.netns import is_of_interface, set_sysctls_in_netns
from runtime.oci import asked, user_namespaces
from runtime.pods import builds, ended, pause_watch, plugin_hooks, sandbox_group, sandbox_network, sandbox_release, selinux
from runtime.pods.node import new_id
from runtime.pods.objects import Sandbox
from runtime.records import CLOCK, SandboxRecord
from shim import sandbox as sandbox_job
from shim.forkserver import code_of

if TYPE_CHECKING:
    from runtime.pods.node import Node

log = structlog.get_logger(__name__)

HOSTNAME_BYTES: Final = 64
"""HOST_NAME_MAX of sethostname(2)."""


async def run(node: Node, request: cri.RunPodSandboxRequest) -> str:
    """Make a sandbox, or join the call that makes it; the id.

    Asked again with the same name, uid and attempt for a sandbox that is ready, the answer is that sandbox.
    """
    config = request.config
    _check(config)
    builds.of_pod(node, config)
    user_namespaces.check(config, node.handlers.get(request.runtime_handler))
    made = await node.joiner.run(("sandbox", *_key(config)), lambda: _run(node, request))
    if (joined := node.sandboxes.get(made)) is not None and joined.record.config != config:
        return _existing(joined, request)
    return made


def _key(config: cri.PodSandboxConfig) -> tuple[str, str, str, int]:
    metadata = config.metadata
    return metadata.namespace, metadata.name, metadata.uid, metadata.attempt


def _check(config: cri.PodSandboxConfig) -> None:
    metadata = config.metadata
    if not metadata.name or not metadata.uid or not metadata.namespace:
        raise invalid("the sandbox's metadata lacks a name, a uid or a namespace")
    if len(config.hostname.encode()) > HOSTNAME_BYTES:
        raise invalid(f"hostname {config.hostname!r} is longer than {HOSTNAME_BYTES} bytes")
    options = config.linux.security_context.namespace_options
    if options.pid == cri.TARGET:
        raise invalid("a sandbox cannot share the PID namespace of a target container")
    asked.check(config)


async def _run(node: Node, request: cri.RunPodSandboxRequest) -> str:
    wanted = _key(request.config)
    for known in list(node.sandboxes.values()):
        # The uid first: there may be hundreds of others, and each field of a message takes a while to read.
        if known.record.config.metadata.uid == request.config.metadata.uid and _key(known.record.config) == wanted:
            if known.record.state is SandboxState.CREATING:
                # What is left of a call whose undoing failed, for a call under way would have been joined.
                async with known.lock:
                    await sandbox_release.discard(node, known)
                continue
            return _existing(known, request)
    await asyncio.get_running_loop().run_in_executor(node.blocking, node.store.require_room)
    _check_name(node, request.config)
    created_at = CLOCK.next_of(request.config.metadata.uid)
    record = SandboxRecord(id=new_id(), config=request.config, handler=request.runtime_handler, created_at=created_at)
    record.cgroup_parent = request.config.linux.cgroup_parent
    record.overhead, record.resources = request.config.linux.overhead, request.config.linux.resources
    if not record.cgroup_parent:
        record.cgroup_parent = _own_parent(node, record.id)
        record.owns_cgroup_parent = True
    record.cgroup = cgroups.container_path(record.cgroup_parent, f"init-{record.id[:12]}", systemd=False)
    record.selinux_level = selinux.level_for(node, record.config)
    sandbox = Sandbox(record, build=builds.of_pod(node, record.config))
    node.sandboxes[record.id] = sandbox
    if asked.removed_at_end(record.config.annotations):
        node.to_be_removed.set()
    async with sandbox.lock:
        try:
            await node.store.sandboxes.put(record.id, record.document())
            failpoint("sandbox.recorded")
            await _make(node, sandbox)
            await plugin_hooks.run_sandbox(node, sandbox)
            failpoint("sandbox.told")
            record.ready_at = CLOCK.now()
            await node.store.sandboxes.put(record.id, record.document())
        except BaseException:
            record.ready_at = 0
            await plugin_hooks.sandbox_failed(node, sandbox)
            await sandbox_release.undo(node, sandbox)
            raise
    node.events.sandbox_started(sandbox)
    return record.id


def _check_name(node: Node, config: cri.PodSandboxConfig) -> None:
    """Raise ALREADY_EXISTS if the pod wants its name for itself, and another one has it that has not ended."""
    if asked.MADE_BY not in config.annotations:
        return
    name = (config.metadata.namespace, config.metadata.name)
    for known in node.sandboxes.values():
        metadata = known.record.config.metadata
        if (metadata.namespace, metadata.name) == name and not ended.is_over(known):
            raise CrispError(Code.ALREADY_EXISTS, f"the name {name[1]} is taken, by pod {known.record.id[:13]}")


def _own_parent(node: Node, sandbox_id: str) -> str:
    """A cgroup for a pod whose client names none, which a kubelet always does: in the form of the cgroup driver."""
    parent = node.config.cgroup.parent.strip("/")
    if node.host.systemd_cgroups:
        return f"{parent.replace('/', '-').removesuffix('.slice')}-pod{sandbox_id}.slice"
    return f"/{parent}/pod{sandbox_id}"


def _existing(sandbox: Sandbox, request: cri.RunPodSandboxRequest) -> str:
    record = sandbox.record
    if record.state is SandboxState.READY and record.config == request.config:
        return record.id
    metadata = record.config.metadata
    raise CrispError(
        Code.ALREADY_EXISTS,
        f"pod {metadata.namespace}/{metadata.name} attempt {metadata.attempt} exists as sandbox {record.id} "
        f"({record.state.value}, or with another configuration): remove it, or ask for a higher attempt",
    )


async def _make(node: Node, sandbox: Sandbox) -> None:
    record = sandbox.record
    options = record.config.linux.security_context.namespace_options
    directory = node.paths.sandbox(record.id)
    directory.mkdir(mode=0o711, parents=True)  # below /run
    await _namespaces(node, sandbox, options)
    failpoint("sandbox.namespaces")
    if options.network == cri.POD:
        result = await node.network.attach(sandbox_network.request(node.paths, record))
        record.ips, record.network = list(result.ips), dict(result.detail)
        await _sysctls_of_interfaces(node, record)
    failpoint("sandbox.network")
    _write_hosts(node, record)
    if node.looked_at:
        await asyncio.get_running_loop().run_in_executor(node.blocking, sandbox_group.make, node, record)


async def _namespaces(node: Node, sandbox: Sandbox, options: cri.NamespaceOption) -> None:
    record = sandbox.record
    directory = node.paths.sandbox(record.id)
    kinds = _kinds(options)
    mapped = user_namespaces.mapping(record.config)
    arguments: dict[str, Any] = {
        "directory": str(directory),
        "netns": str(node.paths.netns(record.id)) if "net" in kinds else "",
        "kinds": kinds if mapped is None else ["user", *kinds],
        "uids": mapped.uids.shim() if mapped is not None else [],
        "gids": mapped.gids.shim() if mapped is not None else [],
        "hostname": record.config.hostname if "uts" in kinds else "",
        "sysctls": {
            name: value for name, value in _sysctls(node, record.config, options).items() if not is_of_interface(name)
        },
        "shm": {
            "path": str(directory / "shm"),
            "size": asked.shm_size(record.config, node.config.containers.shm_size),
            "label": selinux.pod_label(node, record),
        }
        if "ipc" in kinds
        else None,
    }
    if mapped is not None:
        await node.fork_server.run_job("shim.sandbox:create", arguments, timeout=limits.SANDBOX_SECONDS)
        work = functools.partial(_write_files, node, record)
    else:
        work = functools.partial(_make_namespaces_and_files, node, record, arguments)
    await to_its_end(asyncio.get_running_loop().run_in_executor(node.blocking, work))
    node.fork_server.expect_shims()


def _make_namespaces_and_files(node: Node, record: SandboxRecord, arguments: dict[str, Any]) -> None:
    """In one way to the pool."""
    try:
        own_thread.apart(lambda: sandbox_job.make(arguments))
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise CrispError(code_of(error), str(error)) from error
    _write_files(node, record)


def _kinds(options: cri.NamespaceOption) -> list[str]:
    """The namespaces that a sandbox has of its own; its host name goes with its network."""
    kinds = ["net", "uts"] if options.network != cri.NODE else []
    return [*kinds, "ipc"] if options.ipc != cri.NODE else kinds


def _sysctls(node: Node, config: cri.PodSandboxConfig, options: cri.NamespaceOption) -> dict[str, str]:
    """Those of the request, which the shim's job checks against the pod's own namespaces, and crisp's defaults."""
    asked = dict(config.linux.sysctls)
    if options.network == cri.NODE:
        return asked
    defaults = {}
    if node.config.containers.enable_unprivileged_ports:
        defaults["net.ipv4.ip_unprivileged_port_start"] = "0"
    if node.config.containers.enable_unprivileged_icmp:
        mapped = user_namespaces.mapping(config)
        defaults["net.ipv4.ping_group_range"] = f"0 {mapped.gids.count - 1 if mapped is not None else 2147483647}"
    return {**defaults, **asked}


async def _sysctls_of_interfaces(node: Node, record: SandboxRecord) -> None:
    """net.ipv4.conf.eth0.…, which the kernel has only once the pod has the interface."""
    wanted = {name: value for name, value in record.config.linux.sysctls.items() if is_of_interface(name)}
    if wanted:
        path = str(node.paths.namespace(record.id, "net"))
        await asyncio.get_running_loop().run_in_executor(node.blocking, set_sysctls_in_netns, path, wanted)


def _write_files(node: Node, record: SandboxRecord) -> None:
    """resolv.conf and hostname, which do not wait for the network; containers mount them where the kubelet gives none."""
    config = record.config
    host_network = config.linux.security_context.namespace_options.network == cri.NODE
    resolver = dns.resolv_conf(
        servers=config.dns_config.servers,
        searches=config.dns_config.searches,
        options=config.dns_config.options,
        own_network=not host_network,
    )
    _write(node, record, "resolv.conf", resolver)
    _write(node, record, "hostname", record.hostname() + "\n")


def _write_hosts(node: Node, record: SandboxRecord) -> None:
    """hosts, with the pod's addresses. Does not block, as the directory is in memory."""
    name = record.hostname()
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{name}" for address in record.ips if name]
    lines += asked.hosts(record.config, _way_to_node(node, record))
    _write(node, record, "hosts", "\n".join(lines) + "\n")


def _write(node: Node, record: SandboxRecord, name: str, text: str) -> None:
    file = node.paths.sandbox(record.id) / name
    file.write_text(text)
    if label := selinux.pod_label(node, record):
        lsm.set_file_label(str(file), label)


def _way_to_node(node: Node, record: SandboxRecord) -> str:
    """The address under which a pod reaches its node; empty if the network does not tell."""
    if record.config.linux.security_context.namespace_options.network == cri.NODE:
        return "127.0.0.1"
    return next(iter(record.network.get("gateways", ())), "")


async def share_pid_namespace(node: Node, sandbox: Sandbox) -> None:
    """Give the sandbox a PID namespace of its own, with a minimal init; made for the first container that wants it.

    The caller holds the sandbox's lock.
    """
    record = sandbox.record
    if record.pause_pid or record.state is not SandboxState.READY:
        return
    kinds = _kinds(record.config.linux.security_context.namespace_options)
    if user_namespaces.mapping(record.config) is not None:
        kinds.append("user")
    reply = await node.fork_server.run_job(
        "shim.pause:main",
        {
            "directory": str(node.paths.sandbox(record.id)),
            "join": {kind: str(node.paths.namespace(record.id, kind)) for kind in kinds},
            "cgroup": record.cgroup,
            "hierarchies": [node.host.hierarchies.mode.value, *node.host.hierarchies[1:]],
        },
        timeout=limits.SANDBOX_SECONDS,
    )
    record.pause_pid = reply["pid"]
    pause_watch.watch(node, sandbox)
    await node.store.sandboxes.put(record.id, record.document())
