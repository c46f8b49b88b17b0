"""Jobs: find out by trying what an OCI runtime can do on this host.

Its word is not enough: crun 1.8 has no `features`, and what a runtime knows the kernel, or the cgroups it finds, may
still refuse. The trial runs in a mount namespace of its own, on a tmpfs, with the host's programs bound read-only as its
root.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from kernel import cgroups, mounts, namespaces, syscalls
from proto import oci_annotations
from proto.errors import CrispError
from shim import idmapped_volumes, oci_runtime, process, rootfs

SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
SECONDS = 10.0
"""For one trial."""
DEVICES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
]
"""As every container has them that is not privileged: with cgroup v2 they are a BPF program, which not all may load."""
NAME = "crisp-probe"
SHELL = ("/bin/sh", "-c")
MADE = b"made"
FIRST_ID, ID_COUNT = 1 << 20, 1 << 16
"""Of the trial's user namespace."""


def main(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """`args`: runtime {name, path, root, systemd_cgroup}, directory (empty), detach_unified, cgroup, hierarchies.

    Returns {"error": why it cannot run a container, or "", "recursive_read_only": bool, "user_namespaces": why it cannot run
    one with mapped ids, or ""}.
    """
    with _trial(args) as trial:
        on_v2 = args["hierarchies"][0] == cgroups.Mode.V2.value
        error = trial.run("true") or (trial.exec_cgroup() if on_v2 else "")
        return {
            "error": error,
            "recursive_read_only": not error and trial.recursive_read_only(),
            "user_namespaces": error or trial.user_namespaces(),
        }


def ready_filters(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """`args` as for `main`; returns {"error": why the runtime cannot be given seccomp filters as programs, or ""}."""
    with _trial(args) as trial:
        return {"error": trial.ready_filters()}


@contextmanager
def _trial(args: dict[str, Any]) -> Iterator[Trial]:
    """A trial in a mount namespace of its own; nothing is left of its containers."""
    mode, controllers, unified = args["hierarchies"]
    group = cgroups.Hierarchies(cgroups.Mode(mode), controllers, unified).group(args["cgroup"])
    trial = Trial(oci_runtime.from_args(args["runtime"]), args["directory"], "/" + args["cgroup"].strip("/"))
    try:
        trial.prepare(unified if args["detach_unified"] else "")
        yield trial
    finally:
        while not (group.kill() and group.remove()):
            time.sleep(0.001)


@contextmanager
def _pod() -> Iterator[int]:
    """A user namespace, and a PID namespace that it owns, as a pod has them; the pid of their init."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        ours.close()
        _inhabit(theirs)
    theirs.close()
    try:
        if answer := ours.recv(256).removeprefix(MADE):
            raise OSError(f"a user namespace cannot be made: {answer.decode(errors='replace')}")
        mapping = [namespaces.IdMap(0, FIRST_ID, ID_COUNT)]
        namespaces.write_mappings(child, mapping, mapping)
        ours.send(b"mapped")
        yield int(ours.recv(16))
    finally:
        ours.close()  # whereupon the child ends, and its init with it
        os.waitpid(child, 0)


def _inhabit(channel: socket.socket) -> NoReturn:
    """The child of `_pod`: make the namespaces, an init in them, and wait for the end."""
    try:
        namespaces.unshare(["user", "pid"])
        channel.send(MADE)
        if channel.recv(16):
            init = os.fork()
            if init == 0:
                signal.pause()
            channel.send(str(init).encode())
            channel.recv(16)
            os.kill(init, signal.SIGKILL)
            os.waitpid(init, 0)
    except OSError as error:
        channel.send(str(error).encode())
    finally:
        os._exit(0)


def _closed_directory(path: str) -> str:
    """The directory above `path` through which nobody but its owner gets, in words; "" if there is none."""
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & stat.S_IXOTH:
            mode = stat.S_IMODE(os.stat(path).st_mode)
            return f"{path} lets only its owner through (mode {mode:04o}), and the root of a user namespace is another"
    return ""


class Trial:
    """One runtime, tried several times."""

    def __init__(self, runtime: oci_runtime.Runtime, directory: str, cgroup: str) -> None:
        self._runtime = runtime._replace(root=os.path.join(directory, "state"), systemd_cgroup=False)
        self._directory = directory
        self._cgroup = cgroup

    def prepare(self, detach_unified: str) -> None:
        """Leave the host's mount namespace, and lay out a bundle that goes with the new one."""
        rootfs.enter_private_namespace(detach_unified)
        mounts.make_private("/", recursive=True)
        mounts.tmpfs(self._directory, 1 << 20, mode=0o755)
        syscalls.mount("none", self._directory, flags=syscalls.MS_REMOUNT)  # programs must run from here
        root = os.path.join(self._directory, "rootfs")
        for name in (*SYSTEM, "dev", "proc", "volume"):
            source, target = f"/{name}", os.path.join(root, name)
            if os.path.islink(source):
                os.makedirs(root, exist_ok=True)
                os.symlink(os.readlink(source), target)
            elif name in SYSTEM and os.path.isdir(source):
                os.makedirs(target)
                mounts.bind(source, target, readonly=True, recursive=True)
            elif name not in SYSTEM:
                os.makedirs(target)
        inner = os.path.join(self._directory, "volume", "inner")
        os.makedirs(inner)
        mounts.tmpfs(inner, 1 << 16, mode=0o777)

    def exec_cgroup(self) -> str:
        """Why execs cannot be kept apart on cgroup v2; "" if the runtime knows how to put them into a group of their own."""
        said = os.memfd_create("crisp-help", os.MFD_CLOEXEC)
        try:
            pid = process.spawn([self._runtime.path, "exec", "--help"], (said, said, said))
            os.waitpid(pid, 0)
            if b"--cgroup" in os.pread(said, 1 << 16, 0):
                return ""
        finally:
            os.close(said)
        return f"{self._runtime.path} has no `exec --cgroup`, which cgroup v2 needs: take a newer one"

    def recursive_read_only(self) -> bool:
        """Whether `rro` reaches the mount inside the volume."""
        return not self.run("! touch /volume/inner/x 2>/dev/null", self._volume("rro"))

    def user_namespaces(self) -> str:
        """Why a container in a pod's user and PID namespaces does not get its root and a mapped volume; "" if it does."""
        mapping = [{"containerID": 0, "hostID": FIRST_ID, "size": ID_COUNT}]
        try:
            with _pod() as pid:
                error = self.run(
                    'test "$(stat -c %u:%g /volume)" = 0:0',
                    {**self._volume("rw", "idmap"), "uidMappings": mapping, "gidMappings": mapping},
                    {"uidMappings": mapping, "gidMappings": mapping},
                    {kind: f"/proc/{pid}/ns/{kind}" for kind in ("user", "pid")},
                )
        except (OSError, CrispError) as refused:  # by the kernel, in a chroot for example: other pods run all the same
            return str(refused)
        return error and (_closed_directory(self._directory) or error)

    def _volume(self, *options: str) -> dict[str, Any]:
        source = os.path.join(self._directory, "volume")
        return {"destination": "/volume", "type": "bind", "source": source, "options": ["rbind", *options]}

    def ready_filters(self) -> str:
        """Why a container cannot be given a seccomp filter as a program; "" if it can.

        The runtime's own program for rules that refuse `uname` is handed to it with rules that do not. Both the
        container's process and a command that is executed in it must then be refused `uname`, and that program be kept.
        """
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        refusing, harmless = _rules("uname"), _rules("swapoff")
        error = self._create("true", refusing)
        program = self._kept_filter()
        self._delete()
        if error or not program:
            return error or f"it keeps no {oci_annotations.KEPT_FILTER}"
        if error := self.run("uname", linux=harmless):
            return error
        if error := self.run("! uname", linux=harmless, program=program):
            return error
        error = self._create("sleep 100", harmless, program) or self._call("start", NAME)
        kept = self._kept_filter()
        error = error or self._call("exec", NAME, *SHELL, "! uname")
        self._delete()
        return error or ("" if kept == program else "it keeps another filter than it was given")

    def _create(self, script: str, linux: dict[str, Any], program: bytes = b"") -> str:
        self._describe(script, None, linux, {}, program)
        return self._call("create", "--bundle", self._directory, NAME)

    def _delete(self) -> None:
        self._call("delete", "--force", NAME)
        try:
            while True:
                os.waitpid(-1, 0)  # the container's init: a subreaper's child
        except ChildProcessError:
            return

    def _kept_filter(self) -> bytes:
        try:
            with open(os.path.join(self._runtime.root, NAME, oci_annotations.KEPT_FILTER), "rb") as file:
                return file.read(1 << 16)
        except OSError:
            return b""

    def run(
        self,
        script: str,
        volume: dict[str, Any] | None = None,
        linux: dict[str, Any] | None = None,
        joined: dict[str, str] | None = None,
        program: bytes = b"",
    ) -> str:
        """Run a shell script in a container, some of whose namespaces are given by paths; why it failed, or "".

        `program` is its seccomp filter, in place of the rules in `linux`.
        """
        self._describe(script, volume, linux or {}, joined or {}, program)
        return self._call("run", "--bundle", self._directory, NAME)

    def _describe(
        self, script: str, volume: dict[str, Any] | None, linux: dict[str, Any], paths: dict[str, str], program: bytes
    ) -> None:
        """Write the OCI configuration."""
        kinds = dict.fromkeys(("mount", "pid", "ipc", "uts", *paths))
        document: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": True},
            "process": {"cwd": "/", "args": [*SHELL, script], "env": ["PATH=/bin:/usr/bin"], "user": {}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=64k"]},
                *([volume] if volume is not None else []),
            ],
            "linux": {
                "namespaces": [{"type": k, "path": paths[k]} if k in paths else {"type": k} for k in kinds],
                "cgroupsPath": self._cgroup,
                "resources": {"devices": DEVICES},
                **linux,
            },
        }
        if program:
            document["annotations"] = {oci_annotations.FILTER: base64.b64encode(program).decode()}
        document["process"]["user"] = {"uid": 0, "gid": 0}
        if "user" in paths:
            idmapped_volumes.map_all(self._directory, document, paths["user"])
        with open(os.path.join(self._directory, "config.json"), "w", encoding="utf-8") as file:
            json.dump(document, file)

    def _call(self, verb: str, *arguments: str) -> str:
        """Have the runtime do something; why it failed, or ""."""
        log = os.path.join(self._directory, "log")
        with open(log, "wb"):
            pass  # each trial begins with an empty one
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = self._runtime.command(verb, *arguments, log=log)
        pid = process.spawn(argv, (null, null, null))
        os.close(null)
        deadline = time.monotonic() + SECONDS
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return f"{verb} of a container that should have ended at once took {SECONDS:.0f} s"
            time.sleep(0.002)
        code, _ = process.exit_code(ended[1])
        with open(log, "rb") as file:
            text = file.read(1 << 16)
        return (oci_runtime.last_error(text) or f"exit code {code}") if code else ""


def _rules(refused: str) -> dict[str, Any]:
    """OCI's `linux` with seccomp rules that refuse one system call."""
    rule = {"names": [refused], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    return {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}}
