"""crisp.toml: read once, checked, and from then on only frozen dataclasses.

Every key has a default; `manifests/crisp.toml` lists them all. A key that is unknown or has the wrong type is an error
that names the key and its line.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from imagesvc.config import ImageConfig
from proto.errors import CrispError, invalid
from runtime.config.nri import NriConfig
from runtime.config.telemetry import MetricsConfig, TracingConfig
from runtime.config.ulimits import FOR_ADMINISTRATORS, Ulimit, parse
from runtime.network.config import NetworkConfig
from runtime.streaming.config import StreamingConfig

DEFAULT_PATH: Final = Path("/etc/crisp/crisp.toml")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the daemon says of itself."""

    level: str = "info"
    """debug, info, warning or error."""
    format: str = "auto"
    """auto (console on a terminal, else json), console or json."""


@dataclass(frozen=True, slots=True)
class CgroupConfig:
    """Where containers' cgroups are made."""

    driver: str = "auto"
    """auto (systemd if it is process 1 and cgroup v2 is pure), systemd or cgroupfs."""
    parent: str = "/crisp"
    """For pods whose client names no parent."""
    shims: str = "/crisp-shims"
    """cgroup of the shims and the fork server, outside every pod; empty: the daemon's."""


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """One OCI runtime; RuntimeClass objects name it."""

    path: str = ""
    """Program; empty: the handler's name is looked up in PATH."""
    root: str = ""
    """Its state directory; empty: below crisp's."""
    privileged_without_host_devices: bool = False
    """Privileged containers may use every device, but get nodes only for those they ask for."""
    base_spec: str = ""
    """JSON file: an OCI configuration that lies beneath what crisp makes of each request."""
    pod_annotations: tuple[str, ...] = ()
    """Patterns (`io.example.*`) of pods' annotations that the OCI runtime gets to see."""
    container_annotations: tuple[str, ...] = ()
    """The same for containers' annotations."""
    cni_conf_dir: str = ""
    """Directory of network configurations for this handler's pods; empty: as all others."""
    cni_max_conf_num: int = 1
    """Networks per pod from there; 0: all that the directory has."""


@dataclass(frozen=True, slots=True)
class ContainersConfig:
    """Defaults for containers."""

    max_log_line_size: int = 16384
    """Bytes; longer lines are written in parts."""
    nofile_soft: int = 1024
    """Open files of a container's process, unless it raises them."""
    nofile_hard: int = 524288
    """Up to which it may."""
    enable_unprivileged_ports: bool = True
    """net.ipv4.ip_unprivileged_port_start=0 in pods that have their own network."""
    enable_unprivileged_icmp: bool = True
    """net.ipv4.ping_group_range open in pods that have their own network."""
    device_ownership_from_security_context: bool = False
    """Devices of a container belong to its run_as_user and run_as_group, not to the host's owners."""
    shm_size: int = 64 * 1024 * 1024
    """Bytes of a pod's /dev/shm."""
    seccomp_profile: str = ""
    """File of the RuntimeDefault profile: JSON as docker and Podman have it, or as crisp's own is; empty: crisp's own."""
    default_runtime: str = "auto"
    """Handler for pods that name none; auto: crun where it works, else runc."""
    ulimits: tuple[str, ...] = ()
    """`name=soft[:hard]` for every container; pods may ask for others in the annotation io.crisp.ulimits/CONTAINER."""
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    """Directories of CDI specifications; a later one hides devices of the same name in an earlier one."""
    hooks_dirs: tuple[str, ...] = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")
    """Directories of OCI hooks, oci-hooks(5); a file in a later one hides one of the same name in an earlier one."""
    apparmor_profile: str = "crisp-default"
    """What AppArmor's RuntimeDefault means; crisp-default is loaded at start, any other is the administrator's to load."""
    enable_selinux: bool = False
    """Label processes, files and volumes on hosts with SELinux; the policy must have container_t."""
    restore_checkpoints: bool = False
    """CreateContainer restores a container whose image is a checkpoint: an archive's path, or an image of one. CRIU gives
    processes the rights that the checkpoint says, so who can name one can have root's. RestorePod does not need this."""
    blockio_config_file: str = ""
    """YAML file of block I/O classes, which pods choose by blockio.resources.beta.kubernetes.io annotations."""

    def __post_init__(self) -> None:
        self.limits()

    def limits(self) -> dict[str, Ulimit]:
        """`ulimits` and open files, by name; open files as systemd gives a service, not what the daemon happens to have."""
        named = parse(self.ulimits, FOR_ADMINISTRATORS, "ulimits")
        return {"nofile": Ulimit(self.nofile_soft, self.nofile_hard), **named}


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration."""

    root: Path = Path("/var/lib/crisp")
    """State that survives a reboot."""
    state: Path = Path("/run/crisp")
    """State that does not."""
    socket: Path = Path("/run/crisp/crisp.sock")
    """CRI is served here."""
    socket_group: str = ""
    """Group that may use the socket beside root."""
    log: LogConfig = field(default_factory=LogConfig)
    cgroup: CgroupConfig = field(default_factory=CgroupConfig)
    containers: ContainersConfig = field(default_factory=ContainersConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    nri: NriConfig = field(default_factory=NriConfig)
    runtimes: dict[str, HandlerConfig] = field(default_factory=dict)


def load(path: Path | None = None) -> Config:
    """Read the configuration file.

    `path` None means DEFAULT_PATH if it is there, else all defaults. Raises INVALID_ARGUMENT with file and line.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise invalid(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise invalid(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise invalid(f"{path}: {error}") from None
    return _build(Config, document, _Source(path, text), ())


@dataclass(frozen=True, slots=True)
class _Source:
    path: Path
    text: str

    def error(self, keys: tuple[str, ...], message: str) -> CrispError:
        """An error that names the key and the line it stands in."""
        return invalid(f"{self.path}:{self.line(keys)}: {'.'.join(keys)}: {message}")

    def line(self, keys: tuple[str, ...]) -> int:
        """Line of a key, counted from 1: its assignment in its table, or else its table's header."""
        table: list[str] = []
        best = 1
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
                table = [part.strip().strip("\"'") for part in header[1].split(".")]
                if tuple(table[: len(keys)]) == keys:
                    return number
            elif assignment := re.match(r"\s*([\w.\"'-]+)\s*=", line):
                here = (*table, *(part.strip("\"'") for part in assignment[1].split(".")))
                if here[: len(keys)] == keys:
                    return number
                if here == keys[: len(here)]:  # an inline table holds it
                    best = number
        return best


def _build(cls: type[T], document: dict[str, Any], source: _Source, prefix: tuple[str, ...]) -> T:
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in document.items():
        keys = (*prefix, key)
        if key not in names:
            raise source.error(keys, f"unknown key; known here: {', '.join(sorted(names))}")
        values[key] = _convert(hints[key], value, source, keys)
    try:
        return cls(**values)
    except CrispError as error:
        raise source.error(prefix, error.message) from None


def _convert(hint: Any, value: Any, source: _Source, keys: tuple[str, ...]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert(next(a for a in arguments if a is not type(None)), value, source, keys)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise source.error(keys, "must be a table")
        return _build(typing.cast(type, hint), value, source, keys)
    if origin is dict:
        if not isinstance(value, dict):
            raise source.error(keys, "must be a table")
        return {name: _convert(arguments[1], item, source, (*keys, name)) for name, item in value.items()}
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise source.error(keys, "must be an array")
        return origin(_convert(arguments[0], item, source, keys) for item in value)
    if hint is Path:
        if not isinstance(value, str) or not value.startswith("/"):
            raise source.error(keys, "must be an absolute path")
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise source.error(keys, f"must be of type {hint.__name__}, not {type(value).__name__}")
    return value
