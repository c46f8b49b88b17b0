"""Where things lie: every path below crisp's two directories, derived from ids.

<root>  /var/lib/crisp                  survives a reboot
    state.db                            records (runtime/store/database.py)
    images/<id>.json                    copies of image records (runtime/store/record_copies.py)
    blobs/ ingest/ layers/              images (imagesvc)
    checkpoints/                        what checkpoints are being written (runtime/checkpoints/notes.py)
    containers/<id>/{upper,work}        writable layer
    containers/<id>/restore/            a checkpoint's files, until the container runs (runtime/pods/restore.py)
    containers/<id>/container.log       log of a container whose client names no log directory
<state> /run/crisp                      does not
    crisp.sock
    daemon.lock                         held while a daemon uses these directories
    containers/                         a private mount: rootfs mounts below stay in the shim's namespace
        <id>/                           OCI bundle, shim's socket, lock and exit record (shim/supervisor.py)
        <id>/record.json                copy of the container's record (runtime/store/record_copies.py)
    sandboxes/<id>/                     ns/{net,ipc,uts,user,pid}, shm/, resolv.conf, hostname, hosts
    sandboxes/<id>/{record,lease}.json  copies of the sandbox's record and of its network lease
    settings/<name>.json                copies of settings
    runtimes/<handler>/                 state of the OCI runtimes
    cni/                                locks of network plugins that run (runtime/network/cni/stragglers.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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

    @property
    def runtimes(self) -> Path:
        """Parent of the OCI runtimes' state directories."""
        return self.state / "runtimes"

    def runtime_root(self, handler: str) -> Path:
        """State directory of an OCI runtime."""
        return self.runtimes / handler
