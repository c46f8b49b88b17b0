"""A shim's whole life on the real kernel, with crun and with runc: create, start, streams, exit, and what is left."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kernel import mounts
from proto.errors import Code, CrispError
from runtime.shims.client import ShimClient, read_exit_record, shim_alive
from runtime.shims.connection import Connection
from runtime.shims.fork_server import ForkServer
from shim.container import CLIENT_TIME
from shim.supervisor import MAX_SESSIONS
from tests.harness.waiting import until
from tests.kernel.conftest import DEADLINE, ShimLab

pytestmark = pytest.mark.root


def log_text(path: Path, stream: str = "stdout") -> str:
    """The content of a CRI log: the pieces of one stream, joined."""
    text = ""
    for line in path.read_text().splitlines():
        _, name, tag, content = line.split(" ", 3)
        if name == stream:
            text += content + ("\n" if tag == "F" else "")
    return text


async def until_in(path: Path, wanted: str) -> None:
    """Wait for a text in a log file."""
    await until(lambda: path.exists() and wanted in path.read_text())


def connected(bundle: Path) -> socket.socket:
    """A connection to a shim that has not been greeted yet."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(DEADLINE)
    directory = os.open(bundle, os.O_PATH)
    client.connect(f"/proc/self/fd/{directory}/shim.sock")
    os.close(directory)
    return client


async def read_all(fd: int) -> bytes:
    """Read to the end of file without blocking the loop."""
    return await asyncio.to_thread(_read_all, fd)


def _read_all(fd: int) -> bytes:
    parts = []
    try:
        while select.select([fd], [], [], DEADLINE)[0] and (part := os.read(fd, 1 << 16)):
            parts.append(part)
    except OSError:  # EIO: the other side of a terminal is closed
        pass
    return b"".join(parts)


def shim_pid(bundle: Path) -> int:
    """The process that holds the lock."""
    inode = (bundle / "shim.lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    raise AssertionError("nobody holds shim.lock")


# --- create, start, exit ---------------------------------------------------------------------------------------


async def test_exit_code_log_and_record(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sh", "-c", "echo out; echo err >&2; exit 7")
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.signal, record.oom_killed, record.reason) == (7, 0, False, "")
    assert 0 < record.started_at <= record.finished_at
    assert read_exit_record(str(bundle)) == record
    assert log_text(bundle / "log") == "out\n"
    assert log_text(bundle / "log", "stderr") == "err\n"
    await shim.gone()
    assert not shim_alive(str(bundle))


async def test_death_by_signal(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    await shim.signal(signal.SIGKILL)
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.signal) == (137, 9)


async def test_default_handler_of_sigpipe(lab: ShimLab) -> None:
    """Python ignores SIGPIPE; what it starts must not inherit that."""
    bundle, shim = await lab.run("grep", "SigIgn", "/proc/self/status")
    await shim.wait()
    # Signals 32 and 33 are the C library's own; make leaves them ignored, and nothing but a raw system call changes that.
    assert int(log_text(bundle / "log").split()[1], 16) & ~(0b11 << 31) == 0


async def test_user_of_the_image(lab: ShimLab) -> None:
    user = {"user": "app", "supplemental": [7]}
    bundle, shim, created = await lab.create("id", user=user)
    assert (created.uid, created.gid, created.groups) == (1000, 1000, [7, 1000, 50000, 50001])
    await shim.start(str(bundle / "log"))
    await shim.wait()
    assert "uid=1000(app) gid=1000(app) groups=7" in log_text(bundle / "log")


async def test_unknown_user_fails_and_leaves_nothing(lab: ShimLab) -> None:
    with pytest.raises(CrispError, match="no user 'nobody-here' in /etc/passwd") as caught:
        await lab.create("true", user={"user": "nobody-here"})
    assert caught.value.code is Code.INVALID_ARGUMENT
    await lab.shims[-1].gone()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("nosuch", "executable file not found in $PATH"),
        ("/bin/nosuch", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "permission denied"),
        ("/etc/passwd/x", "not a directory"),
    ],
)
async def test_command_that_cannot_be_run_is_made_and_not_started(lab: ShimLab, command: str, reason: str) -> None:
    """A kubelet tries a CreateContainer that fails again for ever; one that fails to start is told to the pod's owner."""
    bundle, shim, created = await lab.create(command)
    assert created.pid == 0
    with pytest.raises(CrispError, match=re.escape(f'exec: "{command}": {reason}')) as caught:
        await shim.start(str(bundle / "log"))
    assert caught.value.code is Code.FAILED_PRECONDITION
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.signal, record.reason, record.started_at) == (128, 0, "StartError", 0)
    assert record.message == caught.value.message
    await shim.gone()


async def test_container_without_a_process_is_killed(lab: ShimLab) -> None:
    bundle, shim, _ = await lab.create("nosuch")
    with pytest.raises(CrispError, match="is created"):
        await shim.exec(lab.exec_process("true"))
    await shim.kill()
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.reason) == (137, "")
    with pytest.raises(CrispError):
        await shim.start(str(bundle / "log"))
    await shim.gone()


@pytest.mark.parametrize(("kind", "words"), [("fifo", "FIFO"), ("directory", "Is a directory"), ("missing", "No such file")])
async def test_log_that_cannot_be_opened(lab: ShimLab, kind: str, words: str) -> None:
    bundle, shim, _ = await lab.create("sleep", "1000")
    path = bundle / "log"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = bundle / "not" / "log"
    with pytest.raises(CrispError, match=words):
        await shim.start(str(path))
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.reason, record.started_at) == (128, "StartError", 0)
    assert str(path) in record.message


async def test_log_that_is_a_fifo_somebody_reads(lab: ShimLab) -> None:
    bundle, shim, _ = await lab.create("sleep", "1000")
    os.mkfifo(bundle / "log")
    reader = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(CrispError, match="neither a file nor a character device"):
        await shim.start(str(bundle / "log"))
    os.close(reader)


async def test_home_is_the_users_for_every_runtime(lab: ShimLab) -> None:
    for user, home in (("app", "/home/app"), ("4242", "/"), ("0", "/root")):
        bundle, shim, _ = await lab.create("sh", "-c", "echo $HOME", user={"user": user})
        await shim.start(str(bundle / "log"))
        await shim.wait()
        assert log_text(bundle / "log") == f"{home}\n"


async def test_terminal_that_is_closed_and_opened_again(lab: ShimLab) -> None:
    script = "exec </dev/null >/dev/null 2>&1; echo again >/dev/console; read x; echo more >/dev/console"
    fifo = "mkfifo /go; exec 3</dev/null; "
    bundle, shim = await lab.run("sh", "-c", fifo + script.replace("read x", "read x </go"), tty=True)
    await until_in(bundle / "log", "again")
    client = await shim.attach(stdin=True)
    session = await shim.exec(lab.exec_process("sh", "-c", "echo x > /go"))
    await session.wait()
    session.close()
    assert b"more" in await read_all(client.stdout)
    client.close()
    await shim.wait()
    assert "more" in log_text(bundle / "log")


async def test_all_attached_clients_see_the_end_at_once(lab: ShimLab) -> None:
    _, shim = await lab.run("sh", "-c", "read go; echo out", stdin=True)
    clients = [await shim.attach(stdin=True) for _ in range(4)]
    os.write(clients[0].stdin, b"go\n")
    seen = [await read_all(client.stdout) for client in clients]
    assert seen == [b"out\n"] * 4
    # Who waited for a client that had got everything did so for CLIENT_TIME.
    assert await shim.wait() is not None
    await asyncio.wait_for(shim.gone(), CLIENT_TIME / 2)
    for client in clients:
        client.close()


async def test_missing_rootfs_names_the_path(lab: ShimLab) -> None:
    bundle, shim, cgroup = await lab.shim()
    (bundle / "spec.json").write_text(json.dumps(lab.spec(["true"], cgroup, False, {})))
    rootfs = {"lowerdirs": ["/nonexistent-layer"], "upper": str(lab.base), "work": str(lab.base)}
    with pytest.raises(CrispError):
        await shim.create(rootfs, {"user": ""})
    await shim.gone()


async def test_directories_for_volumes_are_made_inside_the_root(lab: ShimLab) -> None:
    (lab.layer / "escape").symlink_to("/../../..")
    bundle, shim, _ = await lab.create("ls", "-d", "/data/a", "/crisp-made", mkdirs=["/data/a", "/escape/crisp-made"])
    await shim.start(str(bundle / "log"))
    await shim.wait()
    assert log_text(bundle / "log") == "/crisp-made\n/data/a\n"
    assert not Path("/crisp-made").exists()


async def test_root_is_mounted_for_the_container_alone(lab: ShimLab) -> None:
    bundle, _ = await lab.run("sleep", "1000")
    assert list((bundle / "rootfs").iterdir()) == []
    own = (bundle / "rootfs").as_posix()
    assert not [entry for entry in mounts.mountinfo(shim_pid(bundle)) if entry.mount_point == own.encode()]


async def test_kill_before_start(lab: ShimLab) -> None:
    _, shim, _ = await lab.create("sleep", "1000")
    await shim.kill()
    record = await shim.wait()
    assert record is not None
    assert (record.exit_code, record.started_at) == (137, 0)


async def test_kill_of_a_shim_without_a_container(lab: ShimLab) -> None:
    _, shim, _ = await lab.shim()
    await shim.kill()
    await shim.gone()


async def test_second_shim_is_refused(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sleep", "1000")
    socket_before = (bundle / "shim.sock").stat().st_ino
    with pytest.raises(CrispError, match="has a shim already") as refused:
        await lab.server.spawn_shim(lab.options(bundle))
    assert refused.value.code is Code.ALREADY_EXISTS
    assert (bundle / "shim.sock").stat().st_ino == socket_before
    assert (await shim.state())["state"] == "running"


async def test_a_shim_that_nobody_uses_leaves(lab: ShimLab) -> None:
    bundle = lab.bundle()
    await lab.server.run_job("tests.harness.hasty_shim:main", lab.options(bundle).arguments(), timeout=30)
    await until(lambda: not shim_alive(str(bundle)))


async def test_only_so_many_clients_at_once(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sleep", "1000")
    clients = []
    try:
        for _ in range(MAX_SESSIONS - 1):
            clients.append(connected(bundle))
            assert clients[-1].recv(1 << 16)
        with connected(bundle) as refused:
            assert refused.recv(1 << 16) == b""
        clients.pop().close()
        await shim.state()  # it has seen by now that one has left
        with connected(bundle) as taken:
            assert taken.recv(1 << 16)
        assert (await shim.state())["state"] == "running"
    finally:
        for client in clients:
            client.close()


@pytest.mark.controllers("memory")
async def test_out_of_memory(lab: ShimLab) -> None:
    eater = "x=0123456789abcdef; while true; do x=$x$x; done"
    _, shim = await lab.run("sh", "-c", eater, resources={"memory": {"limit": 16 << 20}})
    record = await shim.wait()
    assert record is not None
    assert record.oom_killed
    assert record.exit_code == 137


@pytest.mark.controllers("memory")
async def test_out_of_memory_of_a_child(lab: ShimLab) -> None:
    eater = "sh -c 'x=0123456789abcdef; while true; do x=$x$x; done'; exit 3"
    _, shim = await lab.run("sh", "-c", eater, resources={"memory": {"limit": 16 << 20}})
    record = await shim.wait()
    assert record is not None
    assert (record.oom_killed, record.exit_code) == (True, 3)


@pytest.mark.controllers("memory")
async def test_update_pause_and_resume(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    await shim.update({"memory": {"limit": 64 << 20}})
    await shim.pause()
    assert (await shim.state())["state"] == "paused"
    await shim.resume()
    assert (await shim.state())["state"] == "running"
    await shim.resume()  # nothing to thaw is no error
    await shim.pause()  # a frozen container must still be killable


async def test_freezing_ends_with_its_session(lab: ShimLab) -> None:
    """Whoever froze the container may have been killed before it could thaw it."""
    bundle, shim = await lab.run("sleep", "1000")
    for wait in (True, False):
        other = await ShimClient.connect(str(bundle))
        frozen = asyncio.ensure_future(other.pause())
        await (frozen if wait else asyncio.sleep(0))  # also when it goes before the answer comes
        other.close()
        await asyncio.gather(frozen, return_exceptions=True)
        while (await shim.state())["state"] != "running":
            await asyncio.sleep(0.01)
    await shim.pause()
    await shim.resume()


async def test_leftover_process_with_the_output_does_not_delay_the_exit(lab: ShimLab) -> None:
    """The orphan dies with the PID namespace; the pipe it held does not keep the container alive."""
    bundle, shim = await lab.run("sh", "-c", "(sleep 1000 &) ; echo done; exit 0")
    record = await shim.wait()
    assert record is not None
    assert record.exit_code == 0
    assert log_text(bundle / "log") == "done\n"


# --- logs ------------------------------------------------------------------------------------------------------


async def test_log_without_a_final_newline(lab: ShimLab) -> None:
    bundle, shim = await lab.run("printf", "no newline")
    await shim.wait()
    assert log_text(bundle / "log") == "no newline"
    assert " P no newline" in (bundle / "log").read_text()


async def test_many_lines_arrive_whole(lab: ShimLab) -> None:
    bundle, shim = await lab.run("seq", "1", "300000")
    await shim.wait()
    assert log_text(bundle / "log") == "".join(f"{number}\n" for number in range(1, 300001))


async def test_reopen_after_rename_and_after_removal(lab: ShimLab) -> None:
    bundle, shim = await lab.run("cat", stdin=True)
    client = await shim.attach(stdin=True, stdout=False, stderr=False)
    log = bundle / "log"
    os.write(client.stdin, b"one\n")
    await until_in(log, "one")
    log.rename(bundle / "log.1")
    os.write(client.stdin, b"two\n")
    await until_in(bundle / "log.1", "two")
    await shim.reopen_log()
    assert log.exists()
    os.write(client.stdin, b"three\n")
    await until_in(log, "three")
    log.unlink()
    await shim.reopen_log()
    os.write(client.stdin, b"four\n")
    await until_in(log, "four")
    assert log_text(bundle / "log.1") == "one\ntwo\n"
    assert log_text(log) == "four\n"
    client.close()


async def test_reopen_that_fails_makes_no_file(lab: ShimLab) -> None:
    bundle, shim, _ = await lab.create("cat", stdin=True)
    folder = bundle / "logs"
    folder.mkdir()
    await shim.start(str(folder / "log"))
    client = await shim.attach(stdin=True, stdout=False, stderr=False)
    folder.rename(bundle / "moved")
    with pytest.raises(CrispError):
        await shim.reopen_log()
    assert not folder.exists()
    os.write(client.stdin, b"still there\n")
    await until_in(bundle / "moved" / "log", "still there")
    client.close()


async def test_full_disk_does_not_block_the_container(lab: ShimLab) -> None:
    small = lab.base / "small"
    small.mkdir()
    mounts.tmpfs(str(small), 64 << 10)
    try:
        _, shim, _ = await lab.create("sh", "-c", "seq 10000 99999; read go; echo after", stdin=True)
        await shim.start(str(small / "log"))
        line = len("2016-10-06T00:17:09.669794202Z stdout F 10000\n")
        while (await shim.state())["lost_log_bytes"] + (small / "log").stat().st_size < 90000 * line:
            await asyncio.sleep(0.01)
        assert (small / "log").read_text().endswith("\n")
        client = await shim.attach(stdin=True, stdout=False, stderr=False)
        os.truncate(small / "log", 0)
        os.write(client.stdin, b"go\n")
        assert (await shim.wait()) is not None
        assert log_text(small / "log") == "after\n"
        client.close()
        await shim.gone()
    finally:
        mounts.detach(str(small))


async def test_no_log_path(lab: ShimLab) -> None:
    _, shim, _ = await lab.create("seq", "1", "100000")
    await shim.start("")
    record = await shim.wait()
    assert record is not None
    assert record.exit_code == 0


# --- terminal and attach ---------------------------------------------------------------------------------------


async def test_terminal(lab: ShimLab) -> None:
    bundle, shim, _ = await lab.create("sh", "-c", "read go; stty size; tty", tty=True)
    await shim.resize(101, 37)
    await shim.start(str(bundle / "log"))
    client = await shim.attach(stdin=True)
    assert client.tty
    client.resize(102, 38)
    os.write(client.stdin, b"go\n")
    output = await read_all(client.stdout)
    assert b"38 102" in output
    await shim.wait()
    assert "/dev/pts/0" in (bundle / "log").read_text()
    assert " stderr " not in (bundle / "log").read_text()
    client.close()


async def test_several_attached_clients(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sh", "-c", "while read line; do echo got $line; echo e$line >&2; done", stdin=True)
    clients = [await shim.attach(stdin=number == 0) for number in range(3)]
    os.write(clients[0].stdin, b"one\ntwo\n")
    await until_in(bundle / "log", "etwo")
    await clients[0].close_stdin()
    for client in clients:
        assert await read_all(client.stdout) == b"got one\ngot two\n"
        assert await read_all(client.stderr) == b"eone\netwo\n"
        client.close()
    record = await shim.wait()
    assert record is not None
    assert record.exit_code == 0


async def test_attached_client_that_comes_late_gets_the_whole_end(lab: ShimLab) -> None:
    """More than a pipe holds: the shim waits for the client after the container has gone."""
    _, shim = await lab.run("sh", "-c", "read go; seq 1 400000", stdin=True)
    client = await shim.attach(stdin=True, stderr=False)
    os.write(client.stdin, b"go\n")
    expected = b"".join(b"%d\n" % number for number in range(1, 400001))
    assert await read_all(client.stdout) == expected
    client.close()


async def test_stdin_once(lab: ShimLab) -> None:
    bundle, shim = await lab.run("cat", stdin=True, stdin_once=True)
    client = await shim.attach(stdin=True)
    os.write(client.stdin, b"text\n")
    client.close()
    record = await shim.wait()
    assert record is not None
    assert record.exit_code == 0
    assert log_text(bundle / "log") == "text\n"


async def test_stdin_stays_open_without_stdin_once(lab: ShimLab) -> None:
    bundle, shim = await lab.run("cat", stdin=True)
    for text in (b"one\n", b"two\n"):
        client = await shim.attach(stdin=True)
        os.write(client.stdin, text)
        await until_in(bundle / "log", text.decode().strip())
        client.close()
    assert (await shim.state())["state"] == "running"


# --- exec ------------------------------------------------------------------------------------------------------


async def test_exec(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    session = await shim.exec(lab.exec_process("sh", "-c", "cat; echo err >&2; exit 3"), stdin=True)
    os.write(session.stdin, b"input\n")
    os.close(session.stdin)
    session.stdin = -1
    assert await read_all(session.stdout) == b"input\n"
    assert await read_all(session.stderr) == b"err\n"
    assert await session.wait() == 3
    session.close()


async def test_exec_with_a_terminal(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    session = await shim.exec(lab.exec_process("sh", "-c", "read x; stty size", tty=True), tty=True, stdin=True)
    assert session.tty
    session.resize(99, 33)
    os.write(session.stdin, b"x\n")
    assert b"33 99" in await read_all(session.stdout)
    assert await session.wait() == 0
    session.close()


async def test_an_exec_that_is_left_goes_on(lab: ShimLab) -> None:
    """Its terminal stays, and what it writes is read."""
    _, shim = await lab.run("sleep", "1000")
    script = "until test -e /over; do seq 1 10000; done; echo out; exec sleep 2000"
    session = await shim.exec(lab.exec_process("sh", "-c", script, tty=True), tty=True, stdin=True)
    await session.leave()
    session.close()
    await execute(lab, shim, "touch", "/over")
    while "sleep 2000" not in (await execute(lab, shim, "ps", "-o", "args"))[1]:
        await asyncio.sleep(0.01)
    await shim.kill()


async def test_nobody_can_be_left_who_is_not_there(lab: ShimLab) -> None:
    bundle, _ = await lab.run("sleep", "1000")
    control = Connection.open(str(bundle), lambda _event: None)
    with pytest.raises(CrispError, match="no exec"):
        await control.request("leave")
    control.close()


async def test_exec_of_a_missing_command(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    with pytest.raises(CrispError, match=r"nosuch.*not found"):
        await shim.exec(lab.exec_process("nosuch"))


async def test_exec_in_a_container_that_has_ended(lab: ShimLab) -> None:
    _, shim = await lab.run("true")
    await shim.wait()
    with pytest.raises(CrispError):
        await shim.exec(lab.exec_process("true"))


@pytest.mark.parametrize("how", ["kill", "close"])
async def test_exec_is_killed_with_double_forked_descendants(lab: ShimLab, how: str) -> None:
    _, shim = await lab.run("sleep", "1000")
    script = "(sh -c 'echo $$ >/tmp/pid; exec sleep 2000' &) ; sleep 3000"
    session = await shim.exec(lab.exec_process("sh", "-c", script))
    while (await execute(lab, shim, "cat", "/tmp/pid"))[0] != 0:
        await asyncio.sleep(0.01)
    if how == "kill":
        await session.kill()
        assert await session.wait() == 137
    session.close()
    while "sleep 2000" in (listing := (await execute(lab, shim, "ps", "-o", "args"))[1]) or "sleep 3000" in listing:
        assert how == "close"
        await asyncio.sleep(0.01)
    assert "sleep 1000" in listing


async def execute(lab: ShimLab, shim: ShimClient, *args: str) -> tuple[int, str]:
    """Run a command in the container: (exit code, output)."""
    session = await shim.exec(lab.exec_process(*args))
    output = await read_all(session.stdout)
    code = await session.wait()
    session.close()
    return code, output.decode()


async def test_many_execs_at_once(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    results = await asyncio.gather(*(execute(lab, shim, "sh", "-c", f"echo {n}; exit {n}") for n in range(10)))
    assert results == [(n, f"{n}\n") for n in range(10)]


async def test_exec_ends_with_the_container(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    session = await shim.exec(lab.exec_process("sleep", "1000"))
    await shim.kill()
    assert await session.wait() == 137
    session.close()


# --- the processes around it -----------------------------------------------------------------------------------


async def test_shim_survives_its_daemon(lab: ShimLab) -> None:
    """Another process starts a container and is killed: the fork server goes with it, the shim does not."""
    bundle, shim = await lab.run("sh", "-c", "read go; exit 5", stdin=True)
    shim.close()
    lab.shims.clear()
    await lab.server.close()
    assert shim_alive(str(bundle))
    again = await ShimClient.connect(str(bundle))
    lab.shims.append(again)
    assert again.hello["state"] == "running"
    client = await again.attach(stdin=True)
    os.write(client.stdin, b"go\n")
    record = await again.wait()
    assert record is not None
    assert record.exit_code == 5
    client.close()
    await again.gone()
    lab.server = await ForkServer.start([])


async def test_exit_is_recorded_while_nobody_listens(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sh", "-c", "read go; exit 6", stdin=True)
    client = await shim.attach(stdin=True, stdout=False, stderr=False)
    pidfd = os.pidfd_open(shim_pid(bundle))
    shim.close()
    lab.shims.clear()
    os.write(client.stdin, b"go\n")
    client.close()
    await asyncio.to_thread(select.select, [pidfd], [], [], 30)
    os.close(pidfd)
    record = read_exit_record(str(bundle))
    assert record is not None
    assert record.exit_code == 6
    assert not shim_alive(str(bundle))


def test_fork_server_ends_with_its_client() -> None:
    script = """
import asyncio, os, signal
from runtime.shims.fork_server import ForkServer
from shim.container import CLIENT_TIME
async def main():
    server = await ForkServer.start([])
    print(server.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    pid = int(done.stdout)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


async def test_malformed_requests_are_answered(lab: ShimLab) -> None:
    _, shim = await lab.run("sleep", "1000")
    with pytest.raises(CrispError, match="unknown operation"):
        await shim._connection.request("nonsense")
    with pytest.raises(CrispError, match="needs signal"):
        await shim._connection.request("signal")
    assert (await shim.state())["state"] == "running"


async def test_a_kill_does_not_kill_the_delete_that_follows(lab: ShimLab) -> None:
    """The runtime would remember the container for ever; the lab asserts that it does not."""
    for _ in range(15):
        _, shim = await lab.run("sleep", "1000")
        await asyncio.gather(shim.kill(), shim.kill(), shim.kill())
        await shim.gone()
        assert not list((lab.base / "oci").glob("*"))
