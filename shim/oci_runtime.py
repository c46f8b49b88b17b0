"""The OCI runtime's command line: arguments in, its own words about a failure out. Nothing is run here.

crun and runc share the subset that is used: global --root, --log, --log-format json, --systemd-cgroup; then `create`,
`start`, `exec`, `update`, `pause`, `resume`, `delete`; `checkpoint` and `restore`, which a crun built without CRIU has not.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from proto.errors import Code, CrispError


class Runtime(NamedTuple):
    """One configured OCI runtime."""

    name: str
    """What it is called in messages."""
    path: str
    root: str
    """Its state directory (--root)."""
    systemd_cgroup: bool

    def command(self, verb: str, *arguments: str, log: str) -> list[str]:
        """The argument vector of one call."""
        options = ["--root", self.root, "--log", log, "--log-format", "json"]
        if self.systemd_cgroup:
            options.append("--systemd-cgroup")
        return [self.path, *options, verb, *arguments]


def from_args(args: dict[str, Any]) -> Runtime:
    """The runtime in a shim's arguments."""
    return Runtime(args["name"], args["path"], args["root"], bool(args.get("systemd_cgroup")))


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


def failure(runtime: Runtime, verb: str, exit_code: int, log: bytes, command: str = "") -> CrispError:
    """Why a call failed, in words for the person who reads `kubectl describe`.

    `command` is what the container was to run. runc says `exec: "x": executable file not found in $PATH`, crun
    "executable file `x` not found in $PATH"; both become the first form, which Kubernetes' users know.
    """
    message = last_error(log)
    if not message:
        return CrispError(Code.INTERNAL, f"{runtime.name} {verb} failed with exit code {exit_code} and without a word")
    lower = message.lower()
    if command and _names_missing_command(lower, command.lower()):
        reason = "executable file not found in $PATH" if "/" not in command else "no such file or directory"
        return CrispError(Code.FAILED_PRECONDITION, f'exec: "{command}": {reason} ({runtime.name}: {message})')
    if command and "permission denied" in lower and ("exec" in lower or command.lower() in lower):
        return CrispError(Code.FAILED_PRECONDITION, f'exec: "{command}": permission denied ({runtime.name}: {message})')
    return CrispError(Code.INTERNAL, f"{runtime.name} {verb}: {message}")


def _names_missing_command(message: str, command: str) -> bool:
    """Whether a runtime's (lower-case) message means that the command is not there."""
    if "executable file" in message and "not found" in message:
        return True
    return command in message and "no such file or directory" in message and ("exec" in message or "open" in message)
