"""What systemd hears of the daemon, of the slices that it may forget, and of the limits that containers have.

By sd_notify(3): that it is ready, reloads, stops, and that its event loop turns.

Without systemd there is no NOTIFY_SOCKET, and no notification does anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from typing import Final

import structlog

SYSTEMCTL_SECONDS: Final = 30.0
"""How long systemd may take for what it is asked."""

log = structlog.get_logger(__name__)


def notify(*assignments: str) -> None:
    """Send `VAR=value` lines."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        log.warning("systemd does not listen", socket=os.environ["NOTIFY_SOCKET"], error=error.strerror)


def reloading() -> None:
    """A Type=notify-reload service says since when it reloads, by the clock that systemd reads."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float:
    """How often the watchdog wants to hear of this process, 0 if never: half of what it tolerates."""
    limit, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not limit.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(limit) / 2_000_000


async def feed_watchdog(seconds: float) -> None:
    """Tell the watchdog for ever that the event loop turns."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)


def forget_slice(name: str) -> None:
    """Have systemd stop a slice that crisp has emptied, and those below it; blocks.

    The OCI runtime's scope had systemd make it. It would keep the unit for ever, and with it the cgroup: one that somebody
    else removes comes back with the next `systemctl daemon-reload`.
    """
    if problem := _systemctl("stop", "--", name):
        log.warning("systemd keeps a slice", slice=name, reason=problem)


def tell_limits(scope: str, assignments: list[str]) -> None:
    """Have systemd know limits that the OCI runtime has written into a container's scope; blocks."""
    if assignments and (problem := _systemctl("set-property", "--runtime", "--", scope, *assignments)):
        log.warning("systemd does not know a container's limits", scope=scope, limits=assignments, reason=problem)


def _systemctl(*arguments: str) -> str:
    """Run it; what went wrong, or empty."""
    try:
        done = subprocess.run(
            ["systemctl", *arguments], check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=SYSTEMCTL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        done.stderr.decode(errors="replace").strip() or f"systemctl ended with {done.returncode}" if done.returncode else ""
    )
