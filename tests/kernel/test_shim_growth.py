"""What a shim and its bundle must not grow by, for a container can run for years."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kernel import cgroups
from proto.errors import CrispError
from shim import runner
from tests.kernel.conftest import ShimLab
from tests.kernel.test_shim import execute, shim_pid

pytestmark = pytest.mark.root


def descriptors(bundle: Path) -> int:
    return len(os.listdir(f"/proc/{shim_pid(bundle)}/fd"))


async def test_clients_of_a_silent_container_leave_no_descriptors(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sleep", "1000")
    before = descriptors(bundle)
    for _ in range(20):
        session = await shim.attach()
        session.close()
    while descriptors(bundle) > before:
        await asyncio.sleep(0.01)


async def test_a_client_that_stays_still_hears_the_end(lab: ShimLab) -> None:
    _, shim = await lab.run("sh", "-c", "read x; echo late", stdin=True)
    gone, stays = await shim.attach(), await shim.attach(stdin=True)
    gone.close()
    os.write(stays.stdin, b"x\n")
    text = b""
    while piece := await asyncio.to_thread(os.read, stays.stdout, 4096):
        text += piece
    assert text == b"late\n"
    stays.close()


async def test_groups_of_execs_whose_children_ended_later(lab: ShimLab) -> None:
    if not lab.hierarchies.unified:
        pytest.skip("this host has no cgroup2 mount")
    bundle, shim = await lab.run("sleep", "1000")
    count = 12
    for _ in range(count):
        # The child goes when the file comes.
        script = "(while [ ! -e /tmp/go ]; do sleep 0.05; done) >/dev/null 2>&1 &"
        assert (await execute(lab, shim, "sh", "-c", script))[0] == 0
    assert groups(lab, bundle.name) >= count
    await execute(lab, shim, "touch", "/tmp/go")
    while groups(lab, bundle.name) > 1:
        await execute(lab, shim, "true")


def groups(lab: ShimLab, name: str) -> int:
    """How many groups of execs the container has."""
    places = [f"{lab.hierarchies.unified}/crisp/{name}"]
    if lab.hierarchies.mode is cgroups.Mode.V2:
        places.append(lab.hierarchies.group(f"{lab.folder}/{name}").directory())
    return max(len(list(Path(place).glob("exec-*"))) for place in places)


async def test_failed_execs_do_not_fill_the_memory(lab: ShimLab, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, shim = await lab.run("sleep", "1000")
    with pytest.raises(CrispError):
        await shim.exec(lab.exec_process("no-such-command"))
    one = (bundle / "runtime.log").stat().st_size
    assert one
    log = bundle / "log-of-many"
    for _ in range(2 * runner.MAX_KEPT // one + 10):
        runner.keep(b"x" * one, str(log))
    sizes = [path.stat().st_size for path in bundle.glob("log-of-many*")]
    assert len(sizes) == 2
    assert sum(sizes) <= 2 * (runner.MAX_KEPT + one)
