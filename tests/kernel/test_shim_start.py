"""A container is started by its shim alone where the runtime's `start` would do no more; sealed copies of the runtime."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from kernel import sealed
from proto.errors import CrispError
from runtime.shims.sealed_programs import SealedPrograms
from shim import process
from tests.harness.waiting import until
from tests.kernel.conftest import ShimLab
from tests.kernel.test_shim import execute, shim_pid
from tests.kernel.test_shim_delete import WITNESS

pytestmark = pytest.mark.root
crun = pytest.mark.parametrize("lab", ["crun"], indirect=True)

MFD_NOEXEC_SEAL = 0x8


@pytest.fixture
def verbs(lab: ShimLab) -> Path:
    """Has what the runtime is asked for."""
    program = lab.base / "witness"
    program.write_text(WITNESS.format(runtime=lab.program))
    program.chmod(0o755)
    lab.program = str(program)
    return Path(f"{program}.verbs")


@crun
async def test_the_runtime_is_not_asked(lab: ShimLab, verbs: Path) -> None:
    bundle, shim, _ = await lab.create("/bin/sh", "-c", "echo runs; exec sleep 1000")
    state = [shutil.which("crun") or "", "--root", str(lab.base / "oci"), "state", bundle.name]
    assert b'"created"' in subprocess.run(state, capture_output=True, check=True).stdout
    await shim.start(str(bundle / "log"))
    assert b'"running"' in subprocess.run(state, capture_output=True, check=True).stdout
    assert verbs.read_text().split() == ["create"]
    await until(lambda: "runs" in (bundle / "log").read_text())
    assert (await execute(lab, shim, "true"))[0] == 0


@crun
async def test_it_runs_the_hooks_that_are_for_the_start(lab: ShimLab, verbs: Path, tmp_path: Path) -> None:
    lab.hooks = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > /dev/null; echo on > {tmp_path}/hook"]}]}
    await lab.run("/bin/sleep", "1000")
    assert verbs.read_text().split() == ["create", "start"]
    assert (tmp_path / "hook").read_text() == "on\n"


@crun
async def test_it_is_asked_where_the_container_does_not_wait_as_it_should(lab: ShimLab, verbs: Path) -> None:
    bundle, shim, _ = await lab.create("/bin/sleep", "1000")
    (lab.base / "oci" / bundle.name / "exec.fifo").unlink()
    with pytest.raises(CrispError, match="crun start"):
        await shim.start(str(bundle / "log"))
    assert verbs.read_text().split()[:2] == ["create", "start"]
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.reason) == (128, "StartError")


@crun
async def test_a_container_that_has_died_before(lab: ShimLab) -> None:
    """The shim hears of both at once."""
    bundle, shim, created = await lab.create("/bin/sleep", "1000")
    supervisor = shim_pid(bundle)
    os.kill(supervisor, signal.SIGSTOP)
    starting = asyncio.create_task(shim.start(str(bundle / "log")))
    await asyncio.sleep(0)
    os.kill(created.pid, signal.SIGKILL)
    await until(lambda: Path(f"/proc/{created.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    os.kill(supervisor, signal.SIGCONT)
    with pytest.raises(CrispError):
        await starting
    record = await shim.wait()
    assert record is not None
    assert record.exit_code in (128, 137)


def telling_program(lab: ShimLab) -> None:
    """Have the runtime's own program written down, by a hook that it runs."""
    told = f"cat > /dev/null; readlink /proc/$PPID/exe >> {lab.base}/exe"
    lab.hooks = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", told]}]}


@crun
async def test_the_runtime_runs_from_a_sealed_copy(lab: ShimLab) -> None:
    """Until its file is another one: an upgrade holds for containers that run."""
    own = lab.base / "own-crun"
    shutil.copy(lab.program, own)
    lab.program = str(own)
    telling_program(lab)
    _, shim = await lab.run("/bin/sleep", "1000")
    told = lab.base / "exe"
    assert told.read_text() == "/memfd:own-crun (deleted)\n"
    shutil.copy(own, f"{own}.new")
    os.replace(f"{own}.new", own)
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if "own-crun" in os.path.realpath(path)]
    assert len(descriptors) == 1
    own.write_text(f'#!/bin/sh\necho new >> {told}\nexec {shutil.which("crun")} "$@"\n')
    assert (await execute(lab, shim, "true"))[0] == 0
    assert told.read_text().splitlines()[1:] == ["new"]
    await lab.run("/bin/sleep", "1000")
    assert "new" in told.read_text().splitlines()[2:]


def test_a_sealed_copy() -> None:
    program = shutil.which("true") or ""
    copy = sealed.seal(program)
    try:
        assert copy.is_of(program)
        assert not copy.is_of("/nosuch")
        assert os.pread(copy.fd, 1 << 24, 0) == Path(program).read_bytes()
        assert fcntl.fcntl(copy.fd, fcntl.F_GET_SEALS) == sealed.SEALS
        with pytest.raises(PermissionError):
            os.pwrite(copy.fd, b"x", 0)
        assert os.waitpid(process.spawn([program], (0, 1, 2), sealed=copy), 0)[1] == 0
    finally:
        os.close(copy.fd)


def test_a_copy_that_may_not_be_executed() -> None:
    """By a sysctl, or a security module: the program itself is."""
    program = shutil.which("true") or ""
    with open(os.memfd_create("true", os.MFD_CLOEXEC | MFD_NOEXEC_SEAL), "wb", buffering=0) as file:
        file.write(Path(program).read_bytes())
        with pytest.raises(PermissionError):
            os.execve(file.fileno(), [program], {})
        copy = sealed.Sealed(file.fileno(), sealed.version(os.stat(program)))
        assert os.waitpid(process.spawn([program], (0, 1, 2), sealed=copy), 0)[1] == 0


def test_what_is_no_file() -> None:
    with pytest.raises(IsADirectoryError):
        sealed.seal("/proc")
    with pytest.raises(OSError, match="/nosuch"):
        sealed.seal("/nosuch")


async def test_nothing_is_left_of_a_copy_that_nobody_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    program, original = shutil.which("true") or "", sealed.seal
    begun, gate = threading.Event(), threading.Event()

    def slowly(path: str) -> sealed.Sealed:
        begun.set()
        assert gate.wait(20)
        return original(path)

    def copies() -> int:
        return sum("memfd:true" in os.path.realpath(path) for path in Path("/proc/self/fd").iterdir())

    monkeypatch.setattr(sealed, "seal", slowly)
    programs = SealedPrograms()
    waiting = asyncio.create_task(programs.copy_of(program))
    await until(begun.is_set)
    waiting.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert copies() == 1, "the one that is kept"
    programs.close()
    assert copies() == 0
