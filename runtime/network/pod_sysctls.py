"""What the builtin network sets inside a pod for the interface that is to come; what the pod has set itself wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from runtime.network.netns import open_netns, run_in_netns
from runtime.network.seam import NetworkRequest
from runtime.network.sysctls import read_sysctl, set_sysctl

DEFAULTS: Final = {"disable_ipv6": "0", "accept_ra": "0", "accept_dad": "0"}
"""IPv6 on whatever the host's default, no routers but ours, and addresses that can be used at once."""

INTERFACE: Final = "eth0"


def concern_ipv6(sysctls: Mapping[str, str]) -> bool:
    """Whether a pod's sysctls may switch IPv6 off."""
    return any("disable_ipv6" in name for name in sysctls)


def ipv6_is_off(request: NetworkRequest) -> bool:
    """Whether the pod's interface will have no IPv6, by the sysctls that its namespace has or will have. Blocks."""
    own = _asked(request.sysctls, INTERFACE, "disable_ipv6")
    if own is not None:
        return own != "0"
    if not any(_asked(request.sysctls, where, "disable_ipv6") for where in ("all", "default")):
        return False
    netns = open_netns(request.netns_path)
    try:
        return run_in_netns(netns, lambda: read_sysctl("ipv6/conf/default/disable_ipv6")) not in ("", "0")
    finally:
        os.close(netns)


def prepare(sysctls: Mapping[str, str]) -> None:
    """From inside the pod's namespace, before it has its interface: the defaults that the pod does not ask for itself."""
    for key, value in DEFAULTS.items():
        asked = any(_asked(sysctls, where, key) is not None for where in ("all", "default"))
        if not asked:
            set_sysctl(f"ipv6/conf/default/{key}", value, if_there=True)


def _asked(sysctls: Mapping[str, str], where: str, key: str) -> str | None:
    name = f"net.ipv6.conf.{where}.{key}"
    return sysctls.get(name, sysctls.get(name.replace(".", "/")))
