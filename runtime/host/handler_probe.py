"""Finding the handlers of this node: crun and runc where they are, and whatever the configuration names; each is tried."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import structlog

from kernel.cgroups import Mode
from proto.errors import CrispError, invalid
from runtime.config.settings import HandlerConfig
from runtime.host.handlers import BUILTIN, FIELDS, Features, Handler, Handlers

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.config.settings import Config
    from runtime.host.host import Host
    from runtime.paths import Paths
    from runtime.shims.fork_server import ForkServer

log = structlog.get_logger(__name__)

PROBE_SECONDS = 60.0
ELF: Final = b"\x7fELF"
"""How programs begin (elf(5))."""
AGAIN_SECONDS = (5.0, 300.0)
"""Until a handler that did not work is tried again: first, and at most. Each time it is twice as long."""


async def find(config: Config, paths: Paths, host: Host, fork_server: ForkServer) -> Handlers:
    """Try every runtime; INVALID_ARGUMENT if the configured default is not among them at all."""
    named = {name: HandlerConfig() for name in BUILTIN if shutil.which(name)} | config.runtimes
    wanted = config.containers.default_runtime
    if wanted not in ("auto", *named):
        raise invalid(f"containers.default_runtime: {wanted!r} is neither in PATH nor in [runtimes]")
    found: dict[str, Handler] = {}
    problems: dict[str, str] = {}
    probes = (_probe(name, handler, paths, host, fork_server) for name, handler in named.items())
    for name, result in zip(named, await asyncio.gather(*probes), strict=True):
        if isinstance(result, Handler):
            found[name] = result
        else:
            problems[name] = result
            log.warning("OCI runtime does not work", handler=name, error=result)
    default = wanted if wanted != "auto" else next((n for n in (*BUILTIN, *named) if n in found), BUILTIN[0])
    return Handlers(found, problems, default, automatic=wanted == "auto")


async def retry(current: Callable[[], tuple[Handlers, Config]], paths: Paths, host: Host, fork_server: ForkServer) -> None:
    """Try what did not work again, for ever: a busy boot may have been too slow for it, or its program comes later.

    `current` are the handlers and the configuration as they are then, for a reload replaces both.
    """
    handlers, pause = None, AGAIN_SECONDS[0]
    while True:
        if handlers is not current()[0]:
            handlers, pause = current()[0], AGAIN_SECONDS[0]
        await asyncio.sleep(pause)
        pause = min(2 * pause, AGAIN_SECONDS[1])
        handlers, config = current()
        for name, problem in handlers.problems().items():
            result = await _probe(name, config.runtimes.get(name, HandlerConfig()), paths, host, fork_server)
            handlers.tried_again(name, result)
            if isinstance(result, Handler):
                log.info("OCI runtime works by now", handler=name)
            elif result != problem:
                log.warning("OCI runtime does not work", handler=name, error=result)


async def _probe(name: str, handler: HandlerConfig, paths: Paths, host: Host, fork_server: ForkServer) -> Handler | str:
    """The handler, or why it does not work."""
    path = shutil.which(handler.path or name)
    if path is None:
        return f"no program {handler.path or name}"
    root = handler.root or str(paths.runtime_root(name))
    hide_unified = host.hierarchies.mode is Mode.HYBRID
    arguments = _arguments(name, path, root, paths, host, f"crisp-probe-{fork_server.pid}-{name}")
    try:
        tried = await fork_server.run_job("shim.runtime_probe:main", arguments, timeout=PROBE_SECONDS)
    except CrispError as error:
        return error.message
    if tried["error"]:
        return str(tried["error"])
    known = known_fields(await _output(path, "features"))
    said = (await _output(path, "--version")).decode(errors="replace").partition("\n")[0]
    called = said.partition(" ")[0] if await asyncio.to_thread(is_program, path) else ""
    features = Features(said.rpartition(" ")[2], tried["recursive_read_only"], tried["user_namespaces"], known, called)
    return Handler(name, path, root, handler, features, hide_unified, host.systemd_cgroups)


def _arguments(name: str, path: str, root: str, paths: Paths, host: Host, cgroup: str) -> dict[str, Any]:
    """Of the jobs of shim/runtime_probe.py."""
    directory = paths.runtime_root(name) / "probe"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "runtime": {"name": name, "path": path, "root": root},
        "directory": str(directory),
        "detach_unified": host.hierarchies.mode is Mode.HYBRID,
        "cgroup": cgroup,
        "hierarchies": [host.hierarchies.mode.value, *host.hierarchies[1:]],
    }


async def ready_filters(handler: Handler, paths: Paths, host: Host, fork_server: ForkServer) -> str:
    """Why a handler cannot be given seccomp filters as programs (oci/seccomp_programs); empty if it can."""
    cgroup = f"crisp-filters-{fork_server.pid}-{handler.name}"
    arguments = _arguments(handler.name, handler.path, handler.root, paths, host, cgroup)
    found = await fork_server.run_job("shim.runtime_probe:ready_filters", arguments, timeout=PROBE_SECONDS)
    return str(found["error"])


def is_program(path: str) -> bool:
    """Whether this is a program itself, and no script around one."""
    try:
        with open(path, "rb") as file:
            return file.read(len(ELF)) == ELF
    except OSError:
        return False


def known_fields(output: bytes) -> frozenset[str]:
    """What `features` says of FIELDS (OCI runtime spec, features-linux.md); old runtimes do not have that command."""
    try:
        linux = json.loads(output)["linux"]
        said = {
            "netDevices": linux.get("netDevices", {}).get("enabled"),
            "memoryPolicy": linux.get("memoryPolicy"),
            "intelRdt.schemata": linux.get("intelRdt", {}).get("schemata"),
            "intelRdt.enableMonitoring": linux.get("intelRdt", {}).get("monitoring"),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return frozenset()
    return frozenset(field for field in FIELDS if said[field])


async def _output(path: str, argument: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        path,
        argument,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    return output
