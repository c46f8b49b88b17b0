"""Shims that wait for a container: they become what a forked one becomes, and none waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from proto.shim_protocol import Message
from runtime.shims import fork_server, spares
from runtime.shims.client import ShimClient
from tests.harness.shims import pids_called
from tests.harness.waiting import until
from tests.kernel.conftest import ShimLab
from tests.kernel.test_shim import execute, shim_pid

pytestmark = [pytest.mark.root, pytest.mark.parametrize("lab", ["runc"], indirect=True)]  # no runtime is asked here

SPARE = "crisp-spare"


def waiting(lab: ShimLab) -> list[int]:
    """The spares of the lab's fork server."""
    return [pid for pid in pids_called(SPARE) if parent(pid) == lab.server.pid]


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.fixture
async def ready(lab: ShimLab) -> list[int]:
    """The pids of spares that wait, after a first shim."""
    await lab.shim()
    await until(lambda: len(waiting(lab)) == spares.MAX_SPARES)
    return waiting(lab)


async def test_a_spare_becomes_the_shim_of_a_container(lab: ShimLab, ready: list[int]) -> None:
    bundle, shim = await lab.run("sh", "-c", "echo from within; exec sleep 1000")
    pid = shim_pid(bundle)
    assert pid in ready
    assert Path(f"/proc/{pid}/comm").read_text() == "crisp-shim\n"
    assert os.getsid(pid) == pid
    assert os.path.samefile(f"/proc/{pid}/fd/2", bundle / "shim.log")
    assert (await execute(lab, shim, "true"))[0] == 0
    await until(lambda: "from within" in (bundle / "log").read_text())
    await until(lambda: len(waiting(lab)) == spares.MAX_SPARES)


async def test_one_that_was_killed_is_not_missed(lab: ShimLab, ready: list[int]) -> None:
    for pid in ready:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not set(waiting(lab)).intersection(ready))
    bundle, _, _ = await lab.shim()
    assert shim_pid(bundle) not in ready


async def test_one_that_is_killed_when_it_has_its_container_is_not_missed(
    lab: ShimLab, ready: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, ended = spares.Spare.begin, []

    def begin(spare: spares.Spare, arguments: Message, fds: Sequence[int]) -> bool:
        signal.pidfd_send_signal(spare.pidfd, signal.SIGSTOP)
        told = original(spare, arguments, fds)
        spare.kill()
        ended.append(told)
        return told

    monkeypatch.setattr(spares.Spare, "begin", begin)
    bundle, _, _ = await lab.shim()
    assert ended == [True]
    assert shim_pid(bundle) not in ready


async def test_those_that_come_too_late_are_let_go(lab: ShimLab) -> None:
    """The fork server was slow, and nobody has wanted one since."""
    bundle = lab.bundle()
    late = asyncio.Event()

    async def fork(_request: bytes, _descriptors: list[int]) -> int:
        await late.wait()
        return -1

    kept = spares.Spares(fork)
    assert kept.take(lab.options(bundle).arguments()) is None
    kept.prepare()
    await asyncio.sleep(0)
    kept.let_go()  # as it does after IDLE_SECONDS
    late.set()
    await until(lambda: kept._task is None)
    assert kept._waiting == []
    await kept.close()
    kept.prepare()
    assert kept._task is None, "nor after the end"


async def test_one_that_hangs_is_ended(lab: ShimLab, ready: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "SHIM_SECONDS", 0.2)
    for pid in ready:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(CrispError, match="was killed") as caught:
        await lab.shim()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await until(lambda: len(set(waiting(lab)).intersection(ready)) == len(ready) - 1)
    for pid in ready:
        if pid in waiting(lab):
            os.kill(pid, signal.SIGCONT)


async def test_what_goes_wrong_in_it_is_told(lab: ShimLab, ready: list[int]) -> None:
    bundle, _, _ = await lab.shim()
    await until(lambda: len(waiting(lab)) == spares.MAX_SPARES)
    with pytest.raises(CrispError) as caught:
        await lab.server.spawn_shim(lab.options(bundle))
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_one_of_another_configuration_is_not_taken(lab: ShimLab, ready: list[int]) -> None:
    bundle = lab.bundle()
    await lab.server.spawn_shim(replace(lab.options(bundle), oom_score_adj=1))
    lab.shims.append(await ShimClient.connect(str(bundle)))
    assert shim_pid(bundle) not in ready
    assert Path(f"/proc/{shim_pid(bundle)}/oom_score_adj").read_text() == "1\n"
    await until(lambda: not set(waiting(lab)).intersection(ready))


async def test_they_go_when_nobody_wants_them(lab: ShimLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "IDLE_SECONDS", 0.3)
    bundle, _, _ = await lab.shim()
    await until(lambda: waiting(lab) or not lab.server._spares._waiting)
    await asyncio.sleep(0.3)
    await until(lambda: waiting(lab) == [])
    assert Path(f"/proc/{shim_pid(bundle)}").exists()


async def test_they_go_with_the_daemon(lab: ShimLab, ready: list[int]) -> None:
    bundle, _, _ = await lab.shim()
    pid = shim_pid(bundle)
    await lab.server._spares.close()
    await until(lambda: waiting(lab) == [])
    assert Path(f"/proc/{pid}").exists(), "a shim does not"
