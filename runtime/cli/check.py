"""`crisp check`: is this host able? Each line is ok, or says how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click

OLDEST_KERNEL: Final = (5, 8)
"""pidfds, openat2, time namespaces and cgroup v2 as crisp uses them are all there by then."""

FAVORDYNMODS: Final = (6, 0)
"""cgroup2 has had the mount option since then."""

DAEMON_SECONDS: Final = 5.0
"""How long the daemon may take to answer."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line."""

    name: str
    state: str
    """ok, warn (pods run, but something is withheld) or fail."""
    text: str


def command_line(results: list[Result]) -> int:
    """Print the results; exit code 1 if one failed."""
    for result in results:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[result.state]
        click.echo(f"{click.style(result.state.ljust(4), fg=colour)}  {result.name.ljust(14)} {result.text}")
    return int(any(result.state == "fail" for result in results))


@click.command("check")
@click.pass_obj
def command(socket: str) -> None:
    """Tell whether this host can run crisp, and how to mend what is missing."""
    told = _told(socket)
    raise SystemExit(command_line([*(check() for check in CHECKS), _layers(told), _plugins(socket, told)]))


def _root() -> Result:
    if os.geteuid() == 0:
        return Result("root", "ok", "runs as root")
    return Result("root", "fail", "run this as root: namespaces, mounts and cgroups need it")


def _python() -> Result:
    return Result("python", "ok", platform.python_version())


def _kernel() -> Result:
    release = platform.release()
    if _kernel_version() >= OLDEST_KERNEL:
        return Result("kernel", "ok", release)
    return Result("kernel", "fail", f"{release} is older than {'.'.join(map(str, OLDEST_KERNEL))}: upgrade it")


def _kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


def _file_systems() -> Result:
    from kernel import syscalls  # noqa: PLC0415

    try:
        os.close(syscalls.fsopen(b"overlay"))  # which loads its module
    except OSError:
        pass
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file}
    if "overlay" in known:
        return Result("overlay", "ok", "the kernel has overlay")
    return Result("overlay", "fail", "no overlay file system: modprobe overlay, and add it to /etc/modules-load.d")


def _namespaces() -> Result:
    missing = [kind for kind in ("cgroup", "ipc", "mnt", "net", "pid", "uts") if not os.path.exists(f"/proc/self/ns/{kind}")]
    if missing:
        return Result("namespaces", "fail", f"the kernel lacks {', '.join(missing)}: use one built with them")
    return Result("namespaces", "ok", "cgroup, ipc, mnt, net, pid, uts")


def _cgroups() -> Result:
    from kernel.cgroups import Mode, detect  # noqa: PLC0415

    found = detect()
    wanted = {"cpu", "cpuset", "memory", "pids"}
    missing = sorted(wanted - set(found.controllers))
    text = f"{found.mode.value}: {', '.join(sorted(found.controllers))}"
    if missing and found.mode is Mode.V2:
        return Result("cgroups", "fail", f"{text}; {', '.join(missing)} not enabled in cgroup.controllers of the root")
    if missing:
        return Result("cgroups", "warn", f"{text}; without {', '.join(missing)}: limits of those kinds are not applied")
    return Result("cgroups", "ok", text)


def _cgroup_moves() -> Result:
    from kernel.cgroups import detect, quick_moves  # noqa: PLC0415

    if quick_moves():
        return Result("cgroup moves", "ok", "quick: cgroup2 is mounted with favordynmods")
    text = "each container's start and exec waits for the kernel some milliseconds"
    if (unified := detect().unified) and _kernel_version() >= FAVORDYNMODS:
        text += f"; mount -o remount,favordynmods {unified} spares it that"
    return Result("cgroup moves", "ok", text)


def _runtimes() -> Result:
    found = [path for name in ("crun", "runc") if (path := shutil.which(name))]
    if found:
        return Result("oci runtime", "ok", ", ".join(found))
    return Result("oci runtime", "fail", "neither crun nor runc in PATH: apt-get install crun")


def _network() -> Result:
    if not shutil.which("nft"):
        return Result("network", "fail", "no nft in PATH: apt-get install nftables")
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        forwards = file.read().strip() == "1"
    text = "nftables found; " + ("the host forwards" if forwards else "crisp turns ip_forward on when it starts")
    return Result("network", "ok", text)


def _privileges() -> Result:
    from kernel.capabilities import NAMES, bounding_set  # noqa: PLC0415

    withheld = sorted(set(NAMES) - bounding_set())
    if not withheld:
        return Result("capabilities", "ok", "all")
    return Result("capabilities", "warn", f"without {', '.join(withheld)}: containers cannot have them either")


def _security() -> Result:
    from kernel import lsm  # noqa: PLC0415

    modules = [n for n, there in (("AppArmor", lsm.apparmor_enabled()), ("SELinux", lsm.selinux_enabled())) if there]
    if not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        return Result("security", "fail", "the kernel has no seccomp filters: use one built with CONFIG_SECCOMP_FILTER")
    return Result("security", "ok", ", ".join(["seccomp", *modules]))


def _disk() -> Result:
    path = "/var/lib"
    free = shutil.disk_usage(path).free
    if free < 1 << 30:
        return Result("disk", "warn", f"{free >> 20} MiB free on {path}: images need more")
    return Result("disk", "ok", f"{free >> 30} GiB free on {path}")


def _told(socket: str) -> dict[str, Any]:
    """What the daemon tells of itself; nothing if none runs, or it does not answer."""
    import json  # noqa: PLC0415

    from proto import api_pb2 as cri  # noqa: PLC0415
    from proto.errors import CrispError  # noqa: PLC0415
    from runtime.client import Client  # noqa: PLC0415

    if not os.path.exists(socket):
        return {}
    try:
        with Client(socket) as client:
            reply = client.runtime.Status(cri.StatusRequest(verbose=True), timeout=DAEMON_SECONDS)
        told: dict[str, Any] = json.loads(reply.info["config"])
    except (CrispError, KeyError, ValueError):
        return {}
    return told


def _plugins(socket: str, told: dict[str, Any]) -> Result:
    """NRI plugins of the daemon that runs, if one does."""
    if not os.path.exists(socket):
        return Result("nri", "ok", "no crisp serves here; plugins are named while it does")
    if "nri" not in told:
        return Result("nri", "warn", "the daemon does not tell which plugins it has")
    return plugins_line(told["nri"])


def _layers(told: dict[str, Any]) -> Result:
    """What the daemon makes layers as; where none runs, what `images.layers = "auto"` would choose."""
    if "layers" in told:
        return layers_line(told["layers"]["form"], told["layers"].get("why", ""))
    if os.geteuid():
        return Result("layers", "warn", "not tried: that takes root")
    from imagesvc.erofs import sample  # noqa: PLC0415
    from shim import layer_probe  # noqa: PLC0415

    parent = "/var/lib/crisp" if os.path.isdir("/var/lib/crisp") else "/var/lib"
    with tempfile.TemporaryDirectory(prefix=".crisp-check-", dir=parent) as directory:
        why = layer_probe.probe(directory, sample.image(layer_probe.NAME, layer_probe.TEXT))
    return layers_line("directory" if why else "erofs", why)


def layers_line(form: str, why: str) -> Result:
    """What layers are, in a line."""
    if form == "erofs":
        return Result("layers", "ok", "EROFS files")
    return Result("layers", "ok", f"directories: {why}")


def plugins_line(told: dict[str, Any]) -> Result:
    """What the daemon tells of its NRI plugins, in a line."""
    if not told["enabled"]:
        return Result("nri", "ok", "off (nri.enabled)")
    names = [f"{plugin['index']}-{plugin['name']}" for plugin in told["plugins"]]
    where = f"plugins connect to {told['socket']}" if told["socket"] else "no socket is served"
    return Result("nri", "ok", f"{', '.join(names) or 'no plugins'}; {where}")


CHECKS: Final[tuple[Callable[[], Result], ...]] = (
    _root,
    _python,
    _kernel,
    _file_systems,
    _namespaces,
    _cgroups,
    _cgroup_moves,
    _runtimes,
    _network,
    _privileges,
    _security,
    _disk,
)
