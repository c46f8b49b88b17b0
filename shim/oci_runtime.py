"""The OCI runtime's command line: arguments in, its own words about a failure out. Nothing is run here.

crun and runc share the subset that is used: global --root, --log, --log-format json, --systemd-cgroup; then `create`,
`start`, `exec`, `update`, `pause`, `resume`, `delete`; `checkpoint` and `restore`, which a crun built without CRIU has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kernel.sealed import Sealed
from proto.errors import Code, CrispError, failed_precondition


class Runtime(NamedTuple):
    """One configured OCI runtime."""

    name: str
    """What it is called in messages."""
    path: str
    root: str
    """Its state directory (--root)."""
    systemd_cgroup: bool
    delete_is_removal: bool = False
    """To `delete` a container that has ended, without hooks for that, is to remove its state directory and its cgroups: so
    with crun and runc, unless systemd has a part in it."""
    start_is_a_byte: bool = False
    """To `start` a container without hooks for that is to write a byte into its exec.fifo and to unlink it: so with crun."""
    sealed: Sealed | None = None
    """A copy of the program to execute."""

    def command(self, verb: str, *arguments: str, log: str) -> list[str]:
        """The argument vector of one call."""
        options = ["--root", self.root, "--log", log, "--log-format", "json"]
        if self.systemd_cgroup:
            options.append("--systemd-cgroup")
        return [self.path, *options, verb, *arguments]


def from_args(args: dict[str, Any], fds: Sequence[int] = ()) -> Runtime:
    """The runtime in a shim's arguments, and its sealed copy in `fds`, if there is one."""
    return Runtime(
        args["name"],
        args["path"],
        args["root"],
        bool(args.get("systemd_cgroup")),
        bool(args.get("delete_is_removal")),
        bool(args.get("start_is_a_byte")),
        Sealed(fds[0], args["sealed"]) if fds and args.get("sealed") else None,
    )


def last_error(log: bytes) -> str:
    """The last error in a --log-format json file; the last line as it stands if nothing has that form."""
    message = ""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            message = line.decode(errors="replace").strip() or message
            continue
        if isinstance(entry, dict) and entry.get("level", "error") in ("error", "fatal", "panic"):
            message = str(entry.get("msg", "")).strip() or message
    return message


class ProcessError(CrispError):
    """The container can be made, but not the process that it is to run: its command or its working directory is at fault."""


def failure(runtime: Runtime, verb: str, exit_code: int, log: bytes, command: str = "", directory: str = "") -> CrispError:
    """Why a call failed, in words for the person who reads `kubectl describe`.

    `command` is what the container was to run, `directory` where. runc says `exec: "x": executable file not found in $PATH`,
    crun "executable file `x` not found in $PATH"; both become the first form, which Kubernetes' users know. What the pod has
    got wrong is FAILED_PRECONDITION; INTERNAL is for what nobody has foreseen.
    """
    message = last_error(log)
    if not message:
        return CrispError(Code.INTERNAL, f"{runtime.name} {verb} failed with exit code {exit_code} and without a word")
    said = f"({runtime.name}: {message})"
    lower = message.lower()
    reason = next((reason for reason in REASONS if reason in lower), "")
    if command and (fault := _fault_of_command(lower, command, reason)):
        return ProcessError(Code.FAILED_PRECONDITION, f'exec: "{command}": {fault} {said}')
    if reason and directory and _fault_of_directory(lower, directory.lower()):
        return ProcessError(Code.FAILED_PRECONDITION, f"working directory {directory}: {reason} {said}")
    for words, what in FAULTS.items():
        if reason and any(word in lower for word in words):
            return failed_precondition(f"{what}: {reason} {said}")
    if "memory limit" in lower:
        return failed_precondition(f"the memory limit is too low {said}")
    return CrispError(Code.INTERNAL, f"{runtime.name} {verb}: {message}")


REASONS: Final = (
    "no such file or directory",
    "not a directory",
    "is a directory",
    "permission denied",
    "operation not permitted",
    "too many levels of symbolic links",
    "numerical result out of range",
    "invalid argument",
    "no such device",
)
"""The kernel's words, in lower case, for what requests and images do wrong."""

FAULTS: Final = {
    ("cgroup", "writing file", "failed to write", "cpuset"): "a resource limit cannot be set",
    ("mount", "openat2", "mkdir", "securejoin", "rootfs"): "a mount's place in the container",
}
"""Words of crun's and runc's messages, and what they are about."""


_OF_COMMAND: Final = re.compile(
    r'(?:^|: )(?:exec:? ["`/]|executable file `|open executable|exec container process|the path `)'
)
"""How crun and runc begin to speak of the command. A path may have such words in it, and a hook is `fork/exec PATH`."""

_OF_DIRECTORY: Final = re.compile(r"(?:^|: )(?:chdir\b|mkdir [`\"]?(?P<made>/[^`\":]*))")


def _fault_of_command(message: str, command: str, reason: str) -> str:
    """What a runtime's (lower-case) message says is wrong with the command; empty if it speaks of something else."""
    if not _OF_COMMAND.search(message):
        return ""
    if "not found in $path" in message:
        return "no such file or directory" if "/" in command else "executable file not found in $PATH"
    if reason in ("operation not permitted", "is a directory"):  # crun's word for a directory in the command's place
        return "permission denied"
    return reason or ("exec format error" if "exec format error" in message else "")


def _fault_of_directory(message: str, directory: str) -> bool:
    """Whether a message speaks of the working directory, or of one that it lies in and that has to be made for it."""
    found = _OF_DIRECTORY.search(message)
    if found is None:
        return False
    made = found["made"]
    return made is None or f"{directory}/".startswith(f"{made.rstrip('/')}/")
