"""SIGHUP: read the configuration again, take over what can change while pods run, and say what cannot.

A file that is wrong changes nothing. Registries need no reload: their files are read at each pull.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import structlog

from proto.errors import CrispError
from runtime.config import logs
from runtime.host import handler_probe, systemd
from runtime.oci import seccomp

if TYPE_CHECKING:
    from runtime.config.settings import Config
    from runtime.pods.node import Node

PROBED: Final = ("runtimes", "containers.default_runtime")
"""Handlers are tried anew."""
TAKEN: Final = ("log", "containers")
"""Read each time they are used. Everything else was built into something at start."""

log = structlog.get_logger(__name__)


async def follow(node: Node, load: Callable[[], Config], asked: asyncio.Event) -> None:
    """Reload each time `asked` is set, for ever."""
    while True:
        await asked.wait()
        asked.clear()
        systemd.reloading()
        try:
            await reload(node, load)
        except CrispError as error:
            log.error("configuration not reloaded: the old one stays", error=error.message)
        systemd.notify("READY=1")


async def reload(node: Node, load: Callable[[], Config]) -> None:
    """Take over what is new; raises CrispError, and changes nothing, if it cannot be used."""
    wanted = load()
    changed = list(differences(node.config, wanted))
    logs.check(wanted.log)
    seccomp.check(wanted.containers.seccomp_profile)
    if any(_among(key, PROBED) for key in changed):
        node.handlers = await handler_probe.find(wanted, node.paths, node.host, node.fork_server)
    node.config = dataclasses.replace(node.config, log=wanted.log, containers=wanted.containers, runtimes=wanted.runtimes)
    now = [key for key in changed if _among(key, (*TAKEN, *PROBED))]
    later = [key for key in changed if key not in now]
    (log.warning if later else log.info)("configuration reloaded", changed=now, needs_restart=later)
    logs.configure(wanted.log)  # last: a higher level would hide the line above


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys that differ."""
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(before):
            yield from differences(before, after, f"{prefix}{field.name}.")
        elif before != after:
            yield f"{prefix}{field.name}"


def _among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
