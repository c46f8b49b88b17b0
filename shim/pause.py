"""Job: the init of a pod whose containers share a PID namespace.

    fork server ── job (host; pins ns/pid, reports, ends)
                     └─ usher (joins the pod's namespaces, makes the PID namespace, ends)
                          └─ init (PID 1 there: an empty read-only root, no privileges; reaps until SIGTERM)

The job stays outside, for pinning needs the host's mount namespace and rights; the usher joins the pod's user
namespace, so that the PID namespace belongs to it. The init outlives the daemon, and the PID namespace outlives
neither: when its init dies, the kernel kills what is in it.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, NoReturn

from kernel import capabilities, cgroups, namespaces, syscalls
from proto.errors import Code, CrispError

NOBODY = 65535
_READY = b"\0"


def main(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """Start the init; {"pid": its pid on the host, "pinned": path}.

    `args`: directory (of the sandbox), join {kind: pinned path} with "user" if the pod has one, cgroup (path below the
    hierarchies' roots) or null, hierarchies [mode, controllers, unified].
    """
    os.setsid()
    if args.get("cgroup"):
        mode, controllers, unified = args["hierarchies"]
        group = cgroups.Hierarchies(cgroups.Mode(mode), controllers, unified).group(args["cgroup"])
        group.create()
        group.enter(os.getpid())
    path = os.path.join(args["directory"], "ns", "pid")
    namespaces.unpin(path)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    usher = os.fork()
    if usher == 0:
        ours.close()
        _usher(args["join"], theirs)
    theirs.close()
    with ours:
        pid = _await_init(ours)
        os.waitpid(usher, 0)
        try:
            namespaces.pin(path, "pid", pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
    return {"pid": pid, "pinned": path}


def _await_init(channel: socket.socket) -> int:
    """The init's pid, once it is ready; usher and init speak on one channel, in no order."""
    pid, ready = 0, False
    while not (pid and ready):
        message = channel.recv(4096)
        if message == _READY:
            ready = True
        elif message.isdigit():
            pid = int(message)
        else:
            text = message.decode(errors="replace") or "it died"
            raise CrispError(Code.INTERNAL, f"cannot make a PID namespace: {text}")
    return pid


def _usher(join: dict[str, str], channel: socket.socket) -> NoReturn:
    """Join the pod's namespaces, make the PID namespace and its init, say the init's pid on the host."""
    try:
        # All are opened first: behind the user namespace's door their directory may not be reachable.
        order = sorted(join, key=lambda kind: kind != "user")
        fds = [(os.open(join[kind], os.O_RDONLY | os.O_CLOEXEC), kind) for kind in order]
        for fd, kind in fds:
            syscalls.setns(fd, namespaces.FLAGS[kind])
        namespaces.unshare(["pid"])
        pid = os.fork()
        if pid == 0:
            _init(channel)
        channel.send(b"%d" % pid)
    except OSError as error:
        channel.send(str(error).encode())
    finally:
        os._exit(0)


def _init(channel: socket.socket) -> NoReturn:
    """PID 1: give everything up, then reap until SIGTERM or SIGINT."""
    try:
        syscalls.set_process_name(b"crisp-pause")
        wanted = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
        # Blocked signals are not dropped for PID 1, whose unhandled ones otherwise are.
        signal.pthread_sigmask(signal.SIG_SETMASK, wanted)
        _enter_empty_root()
        _drop_privileges()
        fd = channel.detach()
        os.write(fd, _READY)
        os.closerange(0, 1 << 16)
    except OSError as error:
        channel.send(str(error).encode())
        os._exit(1)
    while True:
        if signal.sigwait(wanted) != signal.SIGCHLD:
            os._exit(0)
        _reap()


def _enter_empty_root() -> None:
    """A mount namespace with nothing in it but an empty read-only tmpfs, so that /proc/1/root shows nothing."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    # Over /proc, because any user may reach it and nobody needs it any more.
    flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("none", "/proc", "tmpfs", flags, "size=0,nr_inodes=1")
    os.chdir("/proc")
    # pivot_root(2), "pivot_root(".", ".")": the old root ends up over the new one and is unmounted from there.
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def _drop_privileges() -> None:
    """No capability, now or ever; nobody's ids where the pod's mapping has them."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    for name in capabilities.bounding_set():
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, capabilities.NUMBERS[name])
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        pass  # not mapped in the pod's user namespace: its root, without capabilities, will do
    syscalls.drop_all_capabilities()


def _reap() -> None:
    """Reap every child that has exited."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return
