"""One churn run: a daemon, a registry, a warm-up, the load, and a census on either side of it."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from proto import admin_pb2 as admin
from tests.churn import census
from tests.churn.census import Census
from tests.churn.load import Churn, Images
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs

SETTLE_SECONDS = 30
"""Links and layers are removed behind the calls; what is idle for long, such as pooled connections, goes too."""


class Run:
    """A daemon under load."""

    def __init__(self) -> None:
        self._base = tempfile.TemporaryDirectory(prefix="crisp-churn-", dir="/var/tmp")
        base = Path(self._base.name)
        base.chmod(0o711)
        self.daemon = Daemon()
        self.daemon.config.write_text(self.daemon.config.read_text().replace('level = "debug"', 'level = "info"'))
        self._images = Images(base)
        self.daemon.start()
        assert self.daemon.client is not None
        rootfs = str(make_rootfs(base / "rootfs"))
        image = self.daemon.client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/churn:1", directory=rootfs))
        self.churn = Churn(Kubelet(self.daemon, image.image_id), self._images)
        self.rows_left: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()
        self.daemon.destroy()
        self._base.cleanup()

    def pss_kib(self) -> int:
        assert self.daemon.process is not None
        return census.pss_kib(self.daemon.process.pid)

    def measure(self, pods: int, at_once: int, progress: Callable[[int], None] = lambda _: None) -> tuple[Census, Census]:
        """A warm-up, so that what is loaded or started once is there; then the load. The census before and after it."""
        self.churn.run(4 * at_once, at_once)
        before = self._settled(None)
        self.churn.run(pods, at_once, progress)
        after = self._settled(before)
        self.rows_left = self._rows_left()
        return before, after

    def _settled(self, wanted: Census | None) -> Census:
        """A census that is as wanted, or that has not changed for a second."""
        deadline = time.monotonic() + SETTLE_SECONDS
        last: Census = {}
        while True:
            found = census.take(self.daemon, self.churn.made)
            steady = {name: count for name, count in found.items() if name not in census.SLACK}
            if (not census.differences(wanted, found)) if wanted is not None else (steady == last):
                return found
            if time.monotonic() > deadline:
                return found
            last = steady
            time.sleep(1)

    def _rows_left(self) -> list[str]:
        """Tables of pods in the database that are not empty; the daemon is stopped for that."""
        self.daemon.stop()
        with sqlite3.connect(self.daemon.root / "state.db") as database:
            rows = {
                name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for name in ("sandboxes", "containers", "leases")
            }
        database.close()
        return [f"{count} rows of {name}" for name, count in rows.items() if count]
