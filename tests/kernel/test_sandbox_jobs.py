"""The fork server's other jobs on the real kernel: a sandbox's namespaces, a pod's PID namespace, host paths."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from kernel import cgroups, mounts, namespaces, own_thread
from proto.errors import Code, CrispError
from proto.shim_protocol import Message
from runtime.shims import fork_server
from runtime.shims.fork_server import ForkServer
from shim.sandbox import make
from tests.harness.waiting import until
from tests.kernel.conftest import JOBS

pytestmark = pytest.mark.root

MAPPING = [[0, 100000, 65536]]
PRIVATE = ["net", "ipc", "uts"]


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    server = await ForkServer.start(JOBS)
    yield server
    await server.close()


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    for kind in namespaces.FLAGS:
        namespaces.unpin(str(tmp_path / "ns" / kind))
    mounts.detach_all(tmp_path)


def arguments(directory: Path, kinds: list[str], **changes: object) -> Message:
    shm = {"path": str(directory / "shm"), "size": 1 << 20}
    base = {"directory": str(directory), "kinds": kinds, "hostname": "pod", "sysctls": {}, "shm": shm}
    return {**base, "uids": MAPPING, "gids": MAPPING, **changes}


def inside(directory: Path, *command: str) -> str:
    """Run a command in the pinned network, IPC and UTS namespaces."""
    options = [f"--{kind}={directory}/ns/{kind}" for kind in PRIVATE]
    return subprocess.run(["nsenter", *options, *command], capture_output=True, text=True, check=True).stdout


async def create(server: ForkServer, asked: Message) -> Message:
    """As the daemon does it: a user namespace takes a process, others a thread."""
    if "user" in asked["kinds"]:
        return await server.run_job("shim.sandbox:create", asked)
    return await asyncio.to_thread(own_thread.apart, lambda: make(asked))


@pytest.mark.parametrize("kinds", [PRIVATE, ["user", *PRIVATE]])
async def test_namespaces(server: ForkServer, sandbox: Path, kinds: list[str]) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "kernel/shm_rmid_forced": "1"}
    result = await create(server, arguments(sandbox, kinds, sysctls=sysctls))
    assert set(result["pinned"]) == set(kinds)
    assert all(namespaces.is_pinned(path) for path in result["pinned"].values())
    assert inside(sandbox, "hostname") == "pod\n"
    assert (
        inside(sandbox, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced")
        == "7\n1\n"
    )
    assert "lo" in inside(sandbox, "cat", "/proc/net/if_inet6")
    assert os.statvfs(sandbox / "shm").f_blocks * os.statvfs(sandbox / "shm").f_frsize == 1 << 20


def homes() -> set[str]:
    """Where the threads of this process are."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended
            found |= {os.readlink(f"/proc/self/task/{task}/ns/{kind}") for kind in PRIVATE}
    return found


async def test_no_thread_of_the_daemon_is_left_in_them(server: ForkServer, sandbox: Path) -> None:
    host_name, before = socket.gethostname(), homes()
    await create(server, arguments(sandbox, PRIVATE))
    made = {f"{kind}:[{os.stat(sandbox / 'ns' / kind).st_ino}]" for kind in PRIVATE}
    assert not made & before
    with pytest.raises(CrispError):
        await create(server, arguments(sandbox, PRIVATE, sysctls={"net.ipv4.no_such": "1"}))
    await until(lambda: homes() <= before)  # the kernel takes a moment to let go of a thread that Python has done with
    assert socket.gethostname() == host_name


async def test_second_attempt_replaces_the_first(server: ForkServer, sandbox: Path) -> None:
    for _ in range(2):
        await create(server, arguments(sandbox, PRIVATE))
    assert len(mounts.below(sandbox)) == 4


@pytest.mark.parametrize(
    ("sysctl", "kinds", "complaint"),
    [
        ("net.ipv4.no_such", PRIVATE, "sysctl 'net.ipv4.no_such' = '1': No such file"),
        ("net.ipv4.ip_forward", ["ipc"], "would change the host: the pod shares the host's net namespace"),
        ("kernel.panic", PRIVATE, "does not belong to a pod's namespaces"),
        ("net/../kernel/panic", PRIVATE, "does not belong to a pod's namespaces"),
    ],
)
async def test_refused_sysctl_leaves_nothing(
    server: ForkServer, sandbox: Path, sysctl: str, kinds: list[str], complaint: str
) -> None:
    with pytest.raises(CrispError, match=complaint) as caught:
        await create(server, arguments(sandbox, kinds, sysctls={sysctl: "1"}))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert mounts.below(sandbox) == []


@pytest.mark.parametrize("kinds", [PRIVATE, ["user", *PRIVATE]])
async def test_init_of_a_shared_pid_namespace(server: ForkServer, sandbox: Path, kinds: list[str]) -> None:
    pinned = (await create(server, arguments(sandbox, kinds)))["pinned"]
    mode, controllers, unified = hierarchies = cgroups.detect()
    group = hierarchies.group(f"crisp-test-{os.getpid()}-{sandbox.name}")
    args = {"directory": str(sandbox), "join": pinned, "cgroup": group.path}
    pod = await server.run_job("shim.pause:main", {**args, "hierarchies": [mode.value, controllers, unified]})
    pidfd = os.pidfd_open(pod["pid"])
    try:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pod['pid']}/status").read_text().splitlines())
        assert status["NSpid"].split()[1:] == ["1"]
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert "0" not in status["Uid"].split()
        assert os.listdir(f"/proc/{pod['pid']}/root") == []
        assert os.listdir(f"/proc/{pod['pid']}/fd") == []
        while group.procs() != {pod["pid"]}:  # the job itself is about to end
            await asyncio.sleep(0.01)
        link = f"/proc/{pod['pid']}/ns/pid"
        assert os.stat(pod["pinned"]).st_ino == os.stat(link).st_ino
        # An orphan in the namespace becomes its child and is reaped.
        script = "(sleep 0 &); while ls /proc/*/stat | xargs cat 2>/dev/null | grep -q '(sleep) Z'; do :; done"
        subprocess.run(["nsenter", f"--pid={pod['pinned']}", "sh", "-c", script], check=True, timeout=60)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        await ended(pidfd)
        os.close(pidfd)
        while not group.remove():
            await asyncio.sleep(0.01)


async def ended(pidfd: int) -> None:
    """Wait for the end of a process that is not our child."""
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, done.set)
    await asyncio.wait_for(done.wait(), 20)
    asyncio.get_running_loop().remove_reader(pidfd)


async def test_host_paths(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    paths = [{"path": str(tmp_path / "link")}, {"path": str(tmp_path / "a/b"), "create": True}, {"path": "/dev/null"}]
    found = (await server.run_job("shim.host_paths:inspect", {"paths": paths}))["paths"]
    assert [entry["kind"] for entry in found] == ["file", "directory", "char"]
    assert found[0]["path"] == str(tmp_path / "file")
    assert found[2]["device"] == [1, 3]
    with pytest.raises(CrispError, match="does not exist on the host") as caught:
        await server.run_job("shim.host_paths:inspect", {"paths": [{"path": str(tmp_path / "none")}]})
    assert caught.value.code is Code.NOT_FOUND


async def test_job_that_hangs_is_killed(server: ForkServer, tmp_path: Path) -> None:
    """A FIFO without a reader stands for a dead network file system."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(CrispError, match=r"more than 0.2 s and was killed") as caught:
        await server.run_job("tests.kernel.hanging_job:main", {"fifo": str(fifo)}, timeout=0.2)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert await server.run_job("shim.host_paths:inspect", {"paths": []}) == {"paths": []}


async def test_large_arguments(server: ForkServer, tmp_path: Path) -> None:
    for size in (1 << 10, 1 << 16, 1 << 17, 1 << 20, 8 << 20):
        paths = [{"path": str(tmp_path) + "/." * 500}] * (size // 1000 + 1)
        reply = await server.run_job("shim.host_paths:inspect", {"paths": paths})
        assert len(reply["paths"]) == len(paths)
    with pytest.raises(CrispError) as caught:
        await server.run_job("shim.host_paths:inspect", {"paths": [{"path": "x" * (17 << 20)}]})
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


async def test_no_descriptor_is_left_where_there_are_not_enough(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.run_job("shim.host_paths:inspect", {"paths": []})
    before, original, asked = os.listdir("/proc/self/fd"), os.dup, itertools.count()

    def dup(fd: int) -> int:
        if next(asked):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(fd)

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(OSError, match="Too many open files"):
        await server.run_job("shim.host_paths:inspect", {"paths": []}, [0])
    assert next(asked) == 2
    assert os.listdir("/proc/self/fd") == before


async def test_a_server_that_is_stopped_is_replaced(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's time covers all of it; and after a while nobody waits for that server any more."""
    os.kill(server.pid, signal.SIGSTOP)
    first = server.pid
    with pytest.raises(CrispError, match=r"more than 0.2 s and was killed"):
        await server.run_job("shim.host_paths:inspect", {"paths": []}, timeout=0.2)
    os.kill(first, signal.SIGCONT)
    assert await server.run_job("shim.host_paths:inspect", {"paths": []}) == {"paths": []}
    monkeypatch.setattr(fork_server, "ANSWER_SECONDS", 5)
    os.kill(first, signal.SIGSTOP)
    assert await server.run_job("shim.host_paths:inspect", {"paths": []}) == {"paths": []}
    assert server.pid != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


async def test_unknown_job(server: ForkServer) -> None:
    with pytest.raises(CrispError, match="no_such_module"):
        await server.run_job("no_such_module:main", {})


async def test_cancelled_job_does_not_confuse_the_next(server: ForkServer) -> None:
    tasks = [asyncio.ensure_future(server.run_job("shim.host_paths:inspect", {"paths": []})) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, dict) for result in results] == [False, True, False, True, False]
    assert await server.run_job("shim.host_paths:inspect", {"paths": []}) == {"paths": []}
