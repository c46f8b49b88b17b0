"""Where things lie: every path below crisp's two directories, derived from ids.

<root>  /var/lib/crisp                  survives a reboot
    state.db                            records (runtime/store/database.py)
    images/<id>.json                    copies of image records (runtime/store/record_copies.py)
    blobs/ ingest/ layers/              images (imagesvc)
    checkpoints/                        what checkpoints are being written (runtime/checkpoints/notes.py)
    containers/<id>/{upper,work}        writable layer
    builds/<id>/ build-cache/           builds that run, and what they leave for the next (runtime/pods/builds.py)
    containers/<id>/restore/            a checkpoint's files, until the container runs (runtime/pods/restore.py)
    containers/<id>/container.log       log of a container whose client names no log directory
<state> /run/crisp                      does not
    crisp.sock
    daemon.lock                         held while a daemon uses these directories
    containers/                         a private mount: rootfs mounts below stay in the shim's namespace
        <id>/                           OCI bundle, shim's socket, lock and exit record (shim/supervisor.py)
        <id>/record.json                copy of the container's record (runtime/store/record_copies.py)
    builds/<id>/                        a private mount each: images that builds have mounted (runtime/pods/builds.py)
    layers/                             a private mount: the mount namespace of the layers (shim/layer_mounts.py)
    sandboxes/<id>/                     ns/{net,ipc,uts,user,pid}, shm/, resolv.conf, hostname, hosts
    sandboxes/<id>/{record,lease}.json  copies of the sandbox's record and of its network lease
    settings/<name>.json                copies of settings
    runtimes/<handler>/                 state of the OCI runtimes
    cni/                                locks of network plugins that run (runtime/network/cni/stragglers.py)
/var/run/netns/crisp-<id>               a pod's network namespace again, where plugins' daemons and `ip netns` look for it
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NETNS_DIRECTORY: Final = Path("/var/run/netns")
"""Where iproute2 and all container runtimes pin network namespaces: daemons of plugins mount it into their pods."""

DEFAULT_STATE: Final = Path("/run/crisp")


@dataclass(frozen=True, slots=True)
class Paths:
    """Both directories of one daemon."""

    root: Path
    state: Path

    @property
    def database(self) -> Path:
        """SQLite file."""
        return self.root / "state.db"

    @property
    def lock(self) -> Path:
        """Held by the daemon that uses these directories."""
        return self.state / "daemon.lock"

    @property
    def bundles(self) -> Path:
        """Parent of all bundles, a private mount."""
        return self.state / "containers"

    @property
    def sandboxes(self) -> Path:
        """Parent of all sandboxes' directories."""
        return self.state / "sandboxes"

    @property
    def writable_layers(self) -> Path:
        """Parent of all writable layers."""
        return self.root / "containers"

    @property
    def checkpoint_notes(self) -> Path:
        """What checkpoints are being written."""
        return self.root / "checkpoints"

    @property
    def builds(self) -> Path:
        """Parent of the directories of builds that run."""
        return self.root / "builds"

    @property
    def build_mounts(self) -> Path:
        """The same for what does not survive a reboot."""
        return self.state / "builds"

    @property
    def build_caches(self) -> Path:
        """Parent of the directories that builds keep for those that follow."""
        return self.root / "build-cache"

    @property
    def layer_mounts(self) -> Path:
        """The mount namespace of the layers."""
        return self.state / "layers"

    @property
    def cni(self) -> Path:
        """Locks of network plugins."""
        return self.state / "cni"

    @property
    def image_records(self) -> Path:
        """Copies of image records."""
        return self.root / "images"

    @property
    def settings(self) -> Path:
        """Copies of settings."""
        return self.state / "settings"

    def bundle(self, container_id: str) -> Path:
        """OCI bundle of a container."""
        return self.bundles / container_id

    def writable_layer(self, container_id: str) -> Path:
        """Parent of a container's overlay upper and work directories."""
        return self.writable_layers / container_id

    def sandbox(self, sandbox_id: str) -> Path:
        """Run-time directory of a sandbox."""
        return self.sandboxes / sandbox_id

    def namespace(self, sandbox_id: str, kind: str) -> Path:
        """File that a sandbox's namespace is pinned to; `kind` as in /proc/self/ns."""
        return self.sandbox(sandbox_id) / "ns" / kind

    def netns(self, sandbox_id: str) -> Path:
        """The same network namespace, as network plugins are told of it."""
        return NETNS_DIRECTORY / f"{self._netns_prefix}{sandbox_id}"

    def sandbox_of_netns(self, name: str) -> str:
        """The id of the sandbox that a file among the network namespaces belongs to; empty if it is not this daemon's."""
        match = re.fullmatch(f"{re.escape(self._netns_prefix)}([0-9a-f]{{64}})", name)
        return match[1] if match else ""

    @property
    def _netns_prefix(self) -> str:
        """Daemons with other directories must not take each other's for left-overs."""
        if self.state == DEFAULT_STATE:
            return "crisp-"
        return f"crisp-{hashlib.sha256(str(self.state).encode()).hexdigest()[:8]}-"

    @property
    def runtimes(self) -> Path:
        """Parent of the OCI runtimes' state directories."""
        return self.state / "runtimes"

    def runtime_root(self, handler: str) -> Path:
        """State directory of an OCI runtime."""
        return self.runtimes / handler
