"""Containers on the real kernel: a lab with crun and with runc, a busybox root, and a check that nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kernel import cgroups, mounts
from proto.shim_protocol import Message
from runtime.shims.client import Created, ShimClient
from runtime.shims.fork_server import ForkServer, ShimOptions
from tests.harness import import_witness
from tests.harness.rootfs import make_rootfs

JOBS = (
    "shim.supervisor",
    "shim.sandbox",
    "shim.pause",
    "shim.host_paths",
    "tests.harness.import_witness",
    "tests.harness.hasty_shim",
)
DEADLINE = 20.0  # seconds for anything that a test waits for


class ShimLab:
    """A state directory, a fork server and the containers made through it."""

    def __init__(self, base: Path, runtime: str, server: ForkServer) -> None:
        self.base = base
        self.runtime = runtime
        self.server = server
        self.hierarchies = cgroups.detect()
        self.folder = f"crisp-test-{os.getpid()}-{base.name}"
        self.layer = make_rootfs(base / "layer")
        self.shims: list[ShimClient] = []
        self.program = shutil.which(runtime) or ""
        self.delete_is_removal = False
        self.start_is_a_byte = self.seal = runtime == "crun"
        self.hooks: Message = {}
        self._count = 0

    def spec(self, args: list[str], cgroup: str, tty: bool, resources: Message) -> Message:
        """A small OCI configuration."""
        sets = ("bounding", "effective", "permitted")
        process = {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/bin"],
            "terminal": tty,
            "capabilities": {name: ["CAP_CHOWN", "CAP_KILL"] for name in sets},
        }
        devpts = {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666"],
        }
        return {
            "ociVersion": "1.0.0",
            "process": process,
            "root": {"path": "rootfs", "readonly": False},
            "hooks": self.hooks,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                devpts,
            ],
            "linux": {
                "cgroupsPath": f"/{cgroup}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "resources": resources,
            },
        }

    def options(self, bundle: Path) -> ShimOptions:
        """What the shim of a bundle is told."""
        return ShimOptions(
            id=bundle.name,
            bundle=str(bundle),
            runtime_name=self.runtime,
            runtime_path=self.program,
            runtime_root=str(self.base / "oci"),
            cgroup=f"{self.folder}/{bundle.name}",
            hierarchies=self.hierarchies,
            detach_unified=self.hierarchies.mode is cgroups.Mode.HYBRID,
            delete_is_removal=self.delete_is_removal,
            start_is_a_byte=self.start_is_a_byte,
            seal=self.seal,
            oom_score_adj=0,
        )

    def bundle(self) -> Path:
        """A new container's directory."""
        self._count += 1
        bundle = self.base / "containers" / f"{self.folder}-{self._count}"
        bundle.mkdir(parents=True)
        return bundle

    async def shim(self) -> tuple[Path, ShimClient, str]:
        """Fork a shim that has created nothing: (bundle, client, cgroup)."""
        bundle = self.bundle()
        options = self.options(bundle)
        await self.server.spawn_shim(options)
        client = await ShimClient.connect(str(bundle))
        self.shims.append(client)
        return bundle, client, options.cgroup

    async def create(
        self, *args: str, user: Message | None = None, resources: Message | None = None, **options: Any
    ) -> tuple[Path, ShimClient, Created]:
        """Create a container that runs `args`: (bundle, client, what create found out)."""
        bundle, client, cgroup = await self.shim()
        spec = self.spec(list(args), cgroup, options.get("tty", False), resources or {})
        (bundle / "spec.json").write_text(json.dumps(spec))
        writable = self.base / "rw" / bundle.name
        rootfs = {"lowerdirs": [str(self.layer)], "upper": str(writable / "upper"), "work": str(writable / "work")}
        for key in ("upper", "work"):
            Path(rootfs[key]).mkdir(parents=True)
        created = await client.create({**rootfs, "volatile": True}, user or {"user": ""}, **options)
        return bundle, client, created

    async def run(self, *args: str, **options: Any) -> tuple[Path, ShimClient]:
        """Create and start; the log is `<bundle>/log`."""
        bundle, client, _ = await self.create(*args, **options)
        await client.start(str(bundle / "log"))
        return bundle, client

    def exec_process(self, *args: str, tty: bool = False) -> Message:
        """An OCI process object."""
        user = {"uid": 0, "gid": 0}
        return {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": user, "terminal": tty}

    async def clean_up(self) -> None:
        """End every container and shim, whatever state it is in."""
        for client in self.shims:
            if client.alive:
                await client.kill()
            await client.gone()

    def leftovers(self) -> list[str]:
        """Mounts and cgroups that should not be there any more."""
        found = [os.fsdecode(entry.mount_point) for entry in mounts.below(self.base / "containers")]
        found.remove(str(self.base / "containers"))
        roots = [*self.hierarchies.roots(), self.hierarchies.unified]
        for root in roots:
            places = [os.path.join(root, self.folder, "*"), os.path.join(root, "crisp", f"{self.folder}*")]
            found += [str(path) for place in places for path in Path("/").glob(place[1:]) if path.is_dir()]
        return found

    def late_imports(self) -> list[str]:
        """What shims imported after they were forked: files of another version by then, once crisp is upgraded."""
        logs = (path.read_text() for path in self.base.glob("containers/*/shim.log"))
        return [line for text in logs for line in text.splitlines() if line.startswith(import_witness.SIGN)]

    def remove(self) -> None:
        """Remove what the lab itself has made."""
        self.hierarchies.group(self.folder).remove()
        mounts.detach_all(self.base / "containers")


@pytest.fixture(params=["crun", "runc"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ShimLab]:
    """A lab for each OCI runtime, and proof that its containers leave nothing behind."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    (tmp_path / "containers").mkdir()
    mounts.ensure_private_mount(tmp_path / "containers")
    server = await ForkServer.start(JOBS)
    lab = ShimLab(tmp_path, request.param, server)
    loop = asyncio.get_running_loop()
    alarm = loop.call_later(DEADLINE, lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
    try:
        yield lab
        await lab.clean_up()
        assert lab.leftovers() == []
        assert lab.late_imports() == []
        assert not list((tmp_path / "oci").glob("*"))
    finally:
        alarm.cancel()
        await lab.server.close()
        lab.remove()
