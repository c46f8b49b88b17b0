"""Settings of NRI: where plugins are, how long they may take, and what is not accepted of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from proto.errors import invalid


@dataclass(frozen=True, slots=True)
class ValidatorConfig:
    """What NRI's default validator refuses of the adjustments that plugins make; keys as containerd has them. A refused
    adjustment fails the container's creation."""

    enable: bool = False
    """Without it none of the keys below is looked at."""
    reject_oci_hook_adjustment: bool = False
    """OCI hooks."""
    reject_runtime_default_seccomp_adjustment: bool = False
    """Another seccomp policy for containers that have the runtime's default one."""
    reject_unconfined_seccomp_adjustment: bool = False
    """Another seccomp policy for containers that have none."""
    reject_custom_seccomp_adjustment: bool = False
    """Another seccomp policy for containers that have one of the node's files."""
    reject_namespace_adjustment: bool = False
    """Linux namespaces."""
    reject_sysctl_adjustment: bool = False
    """sysctls."""
    required_plugins: tuple[str, ...] = ()
    """Names of plugins, without their index, without which no container is created. Static pods are concerned too."""
    tolerate_missing_plugins_annotation: str = ""
    """Key of an annotation by which a pod ("true", or with /container.NAME for one of its containers) does without them."""


@dataclass(frozen=True, slots=True)
class NriConfig:
    """Node Resource Interface: plugins that see pods and containers come and go, and may adjust them. A plugin is root."""

    enabled: bool = True
    """Take plugins; without any, NRI costs nothing."""
    socket_path: Path = Path("/var/run/nri/nri.sock")
    """Plugins connect here; root alone may."""
    disable_connections: bool = False
    """Serve no socket: only the plugins of plugin_path are taken."""
    plugin_path: Path = Path("/opt/nri/plugins")
    """Directory of plugins that are started with the daemon; their names are NN-NAME."""
    plugin_config_path: Path = Path("/etc/nri/conf.d")
    """Directory of NN-NAME.conf or NAME.conf, which are handed to those plugins."""
    plugin_registration_timeout: float = 5.0
    """Seconds from a plugin's connecting until it has registered."""
    plugin_request_timeout: float = 2.0
    """Seconds for the answer to one request; a plugin that takes longer is disconnected, and pods go on without it."""
    default_validator: ValidatorConfig = field(default_factory=ValidatorConfig)

    def __post_init__(self) -> None:
        for name in ("plugin_registration_timeout", "plugin_request_timeout"):
            if not getattr(self, name) > 0:
                raise invalid(f"{name} must be more than 0 seconds")
