"""Finding the handlers of this node (placeholder until the probe lands)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from kernel.cgroups import Mode
from runtime.config import HandlerConfig
from runtime.handlers import BUILTIN, Features, Handler, Handlers

if TYPE_CHECKING:
    from runtime.config import Config
    from runtime.host import Host
    from runtime.paths import Paths


async def find(config: Config, paths: Paths, host: Host) -> Handlers:
    """Probe."""
    found = {}
    for name in BUILTIN:
        if path := shutil.which(name):
            found[name] = Handler(
                name,
                path,
                str(paths.runtime_root(name)),
                HandlerConfig(),
                Features("?", False, False),
                name == "crun" and host.hierarchies.mode is Mode.HYBRID,
                host.systemd_cgroups,
            )
    return Handlers(found, {}, next(iter(found), ""))
