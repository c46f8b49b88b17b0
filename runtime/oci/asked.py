"""What a pod asks crisp for that the CRI has no field for: crisp's own annotations, and what they may hold.

    of a pod                                        io.crisp.shm-size: 256M
                                                    io.crisp.hosts: 10.1.2.3 db db.example       a line for each address
                                                    io.crisp.remove-at-end: "true"
                                                    io.crisp.made-by: 3f…              whoever has the name for itself
    of a pod for its container NAME, as …/NAME,     io.crisp.ulimits/NAME: nofile=4096:8192,core=0
    or of the container itself, without /NAME       io.crisp.tmpfs/NAME: /run:size=64M,mode=755  a line for each place
    of a container                                  io.crisp.remove-at-end: "true"
                                                    io.crisp.made-by: 3f…

None of them widens what a pod may do: it could have a tmpfs as an emptyDir in memory, and its hosts as hostAliases.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import TYPE_CHECKING, Any, Final

from proto import api_pb2 as cri
from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "io.crisp."
SHM_SIZE: Final = PREFIX + "shm-size"
HOSTS: Final = PREFIX + "hosts"
REMOVE_AT_END: Final = PREFIX + "remove-at-end"
MADE_BY: Final = PREFIX + "made-by"
"""Of a pod that goes by its name, as docker's containers do: there is no other one of it, whatever its uid. What stands here
is one call's alone, so that another's for the same name is no retry of it, of containers too."""
TMPFS: Final = "tmpfs"
ULIMITS: Final = "ulimits"

GATEWAY: Final = "host-gateway"
"""In place of an address: where a pod reaches its node, as docker calls it."""

MAX_BYTES: Final = (1 << 63) - 1
MAX_HOSTS: Final = 1000
MAX_TMPFS: Final = 100

_SIZE: Final = re.compile(r"(\d{1,19})([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?", re.ASCII)
_FLAGS: Final = {"ro": "ro", "rw": "rw", "exec": "exec", "noexec": "noexec", "nosuid": "nosuid", "nodev": "nodev"}
_VALUES: Final = {
    "size": re.compile(r"\d{1,15}[kmgKMG]?|\d{1,3}%", re.ASCII),
    "mode": re.compile(r"0?[0-7]{1,4}", re.ASCII),
    "uid": re.compile(r"\d{1,9}", re.ASCII),
    "gid": re.compile(r"\d{1,9}", re.ASCII),
    "nr_inodes": re.compile(r"\d{1,9}[kmKM]?", re.ASCII),
}
_KERNELS: Final = ("/proc", "/sys")
"""Nothing is put over these: what hides a file of theirs can hide who asks about it, too. Nor over /dev itself."""


def of_container(key: str, pod: Mapping[str, str], container: cri.ContainerConfig) -> tuple[str, str]:
    """An annotation as it holds for a container, and its text: the container's own goes before its pod's."""
    name = f"{PREFIX}{key}/{container.metadata.name}"
    if text := container.annotations.get(PREFIX + key) or container.annotations.get(name):
        return PREFIX + key, text
    return name, pod.get(name, "")


def check(config: cri.PodSandboxConfig) -> None:
    """Raise INVALID_ARGUMENT for a pod's annotation that cannot be followed."""
    if config.annotations.get(SHM_SIZE) and config.linux.security_context.namespace_options.ipc == cri.NODE:
        raise invalid(f"annotation {SHM_SIZE}: the pod uses the node's /dev/shm")
    shm_size(config, 0)
    hosts(config, GATEWAY)
    check_removal(config.annotations)


def shm_size(config: cri.PodSandboxConfig, default: int) -> int:
    """Bytes of the pod's /dev/shm."""
    text = config.annotations.get(SHM_SIZE, "").strip()
    if not text:
        return default
    form = _SIZE.fullmatch(text)
    size = int(form[1]) * _UNITS[form[2].lower()] if form else 0
    if not 0 < size <= MAX_BYTES:
        raise invalid(f"annotation {SHM_SIZE}: {text!r} is no size such as 256M")
    return size


def hosts(config: cri.PodSandboxConfig, gateway: str) -> list[str]:
    """Lines for the pod's /etc/hosts; `gateway` stands where one says so. Raises INVALID_ARGUMENT."""
    found = []
    for line in config.annotations.get(HOSTS, "").splitlines():
        address, *names = line.split() or [""]
        if not address:
            continue
        if not names or not all(map(_HOST.fullmatch, names)):
            raise invalid(f"annotation {HOSTS}: {line!r} must be an address and the names of a host")
        if address == GATEWAY:
            address = gateway
            if not address:
                raise invalid(
                    f"annotation {HOSTS}: the pod's network does not tell the node's address: write it for {GATEWAY}"
                )
        elif not _is_address(address):
            raise invalid(f"annotation {HOSTS}: {address!r} is neither an IP address nor {GATEWAY}")
        found.append(f"{address}\t{' '.join(names)}")
    if len(found) > MAX_HOSTS:
        raise invalid(f"annotation {HOSTS}: more than {MAX_HOSTS} lines")
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def check_removal(annotations: Mapping[str, str]) -> None:
    """Raise INVALID_ARGUMENT for a pod or container that says what is neither yes nor no."""
    if (text := annotations.get(REMOVE_AT_END, "false")) not in ("true", "false"):
        raise invalid(f"annotation {REMOVE_AT_END}: {text!r} is neither true nor false")


def removed_at_end(annotations: Mapping[str, str]) -> bool:
    """Whether a pod or a container is removed some time after it has ended: see `pods.ended`."""
    return annotations.get(REMOVE_AT_END) == "true"


def tmpfs(pod: Mapping[str, str], container: cri.ContainerConfig) -> list[dict[str, Any]]:
    """Mounts of the OCI configuration. As docker's: without size it is half of the memory, and no program runs from it."""
    key, text = of_container(TMPFS, pod, container)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MAX_TMPFS:
        raise invalid(f"annotation {key}: more than {MAX_TMPFS} lines")
    return [_tmpfs(key, line) for line in lines]


def _tmpfs(key: str, line: str) -> dict[str, Any]:
    place, _, words = line.partition(":")
    destination = posixpath.normpath(place)
    if not place.startswith("/") or not destination.strip("/"):
        raise invalid(f"annotation {key}: {place!r} is not an absolute path below the container's root")
    destination = "/" + destination.lstrip("/")
    if destination == "/dev" or any(destination == kernel or destination.startswith(kernel + "/") for kernel in _KERNELS):
        raise invalid(f"annotation {key}: nothing is put over {destination}")
    options = {"suid": "nosuid", "dev": "nodev", "exec": "noexec", "access": "rw"}
    for word in filter(None, words.split(",")):
        name, equals, value = word.partition("=")
        if not equals and name in _FLAGS:
            options["access" if name in ("ro", "rw") else name.removeprefix("no")] = _FLAGS[name]
        elif equals and name in _VALUES and _VALUES[name].fullmatch(value):
            options[name] = word
        else:
            known = ", ".join((*_FLAGS, *(f"{known}=" for known in _VALUES)))
            raise invalid(f"annotation {key}: {word!r} is not understood in {line!r}; known are {known}")
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options.values())}
