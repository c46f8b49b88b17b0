"""Containers whose beginning goes wrong: what cannot be started, what is killed while it is made, mounts at odd places."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from kernel import cgroups
from proto.errors import CrispError
from proto.shim_protocol import Message
from runtime.shims.client import Created, ShimClient
from tests.kernel.conftest import ShimLab
from tests.kernel.test_shim import read_all


async def create(lab: ShimLab, change: Message, mounts: list[Message]) -> tuple[Path, ShimClient, Created]:
    """A container whose process is changed, with further mounts."""
    bundle, shim, cgroup = await lab.shim()
    spec = lab.spec(["sleep", "1000"], cgroup, False, {})
    spec["process"] |= change
    spec["mounts"] += mounts
    (bundle / "spec.json").write_text(json.dumps(spec))
    writable = lab.base / "rw" / bundle.name
    rootfs = {"lowerdirs": [str(lab.layer)], "upper": str(writable / "upper"), "work": str(writable / "work")}
    for key in ("upper", "work"):
        Path(rootfs[key]).mkdir(parents=True)
    return bundle, shim, await shim.create({**rootfs, "volatile": True}, {"user": ""})


@pytest.mark.parametrize("for_the_log", [True, False])
async def test_no_descriptors_to_start_with(lab: ShimLab, for_the_log: bool) -> None:
    """A start that has not happened is a StartError, and no container that runs."""
    lab.start_is_a_byte = not for_the_log
    bundle, shim, created = await lab.create("sleep", "1000")
    pid = int((Path(f"/proc/{created.pid}/status").read_text().split("PPid:")[1]).split()[0])
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = min(set(range(max(used) + 2)) - used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + for_the_log, hard))
    with pytest.raises(CrispError, match="Too many open files"):
        await shim.start(str(bundle / "log"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.reason, record.started_at) == (128, "StartError", 0)
    assert "Too many open files" in record.message


async def test_killed_while_it_is_found_to_have_no_process(lab: ShimLab) -> None:
    """The OCI runtime is about to forget what it could not make; who has killed the container sees its end."""
    real = shutil.which(lab.runtime)
    gate, reached = lab.base / "gate", lab.base / "reached"
    os.mkfifo(gate)
    wrapper = lab.base / "oci-runtime"
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" delete "*) >{reached}; read go <{gate};; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    lab.program = str(wrapper)
    creating = asyncio.create_task(lab.create("nosuch"))
    async with asyncio.timeout(10):
        while not reached.exists():
            await asyncio.sleep(0.01)
    shim = lab.shims[-1]
    killing = asyncio.create_task(shim.kill())
    await shim.state()  # the kill has arrived by then
    wrapper.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    gate.write_text("go\n")
    await killing
    _, _, created = await creating
    assert created.pid == 0
    record = await shim.wait()
    assert record is not None
    assert record.exit_code == 137


async def test_without_a_process_there_is_nothing_to_limit(lab: ShimLab) -> None:
    bundle, shim, _ = await lab.create("nosuch")
    await shim.update({"memory": {"limit": 64 << 20}})
    with pytest.raises(CrispError, match="executable file not found"):
        await shim.start(str(bundle / "log"))


@pytest.mark.parametrize("directory", ["/etc/passwd", "/etc/passwd/x", "/bin/sh/a/b"])
async def test_working_directory_that_cannot_be(lab: ShimLab, directory: str) -> None:
    bundle, shim, created = await create(lab, {"cwd": directory}, [])
    assert created.pid == 0
    with pytest.raises(CrispError, match=f"working directory {directory}: not a directory"):
        await shim.start(str(bundle / "log"))


@pytest.mark.parametrize("place", ["/first", "/etc/first"])
async def test_file_over_a_chain_of_links_to_nothing(lab: ShimLab, place: str) -> None:
    (lab.layer / place.lstrip("/")).symlink_to("/second")
    (lab.layer / "second").symlink_to("made/../third")
    (lab.layer / "third").symlink_to("../../crisp-made/fourth")
    source = lab.base / "source"
    source.write_text("here\n")
    mount = {"destination": place, "type": "bind", "source": str(source), "options": ["rbind"]}
    bundle, shim, _ = await create(lab, {"args": ["cat", "/crisp-made/fourth"]}, [mount])
    await shim.start(str(bundle / "log"))
    await shim.wait()
    assert (bundle / "log").read_text().endswith(" F here\n")
    assert not Path("/crisp-made").exists()


@pytest.mark.skipif(cgroups.detect().mode is not cgroups.Mode.V2, reason="below the container's group with cgroup v2 alone")
async def test_a_container_that_has_made_groups_does_not_keep_commands_out(lab: ShimLab) -> None:
    """One that manages its own cgroups (a node in a pod, say) may use the names that crisp uses."""
    _, shim = await lab.run("sleep", "1000")
    group = lab.hierarchies.group(f"{lab.folder}/{lab.shims[0].hello['id']}").directory()
    for number in (1, 2, 3):
        Path(group, f"exec-{number}").mkdir()
    session = await shim.exec(lab.exec_process("cat", "/proc/self/cgroup"))
    assert b"/exec-4\n" in await read_all(session.stdout)
    session.close()
    await shim.kill()


async def test_refused_commands_and_clients_cost_no_descriptors(lab: ShimLab) -> None:
    """A shim that was once short of descriptors has all of them again: probes that failed would use up what is left."""
    _, shim, created = await lab.create("sleep", "1000")
    await shim.start("")
    pid = int((Path(f"/proc/{created.pid}/status").read_text().split("PPid:")[1]).split()[0])
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    before = set(os.listdir(f"/proc/{pid}/fd"))
    highest = max(map(int, before))
    refused = 0
    for more in range(4, 12):  # a connection, and the payload of an exec
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + more, hard))
        for attach in (True, False):
            try:
                session = await (shim.attach() if attach else shim.exec(lab.exec_process("true"), stdin=True))
            except CrispError:
                refused += 1
            else:
                session.close()
        deadline = asyncio.get_running_loop().time() + 5
        while (left := set(os.listdir(f"/proc/{pid}/fd")) - before) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in left] == []
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert refused > 4
    session = await shim.exec(lab.exec_process("true"))
    assert await session.wait() == 0
    session.close()
