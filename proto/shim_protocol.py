"""What the daemon and a shim say to each other, without I/O.

The socket is `<bundle>/shim.sock`, SOCK_SEQPACKET: a datagram is one JSON object of at most `MAX_DATAGRAM` bytes, with up
to `MAX_FDS` file descriptors. Each connection is a session of its own.

    shim   -> daemon   {"event": "hello", ...}                       once, on accept
    daemon -> shim     {"op": NAME, "seq": N, field: value, ...}     N is the daemon's choice
    shim   -> daemon   {"seq": N, "ok": {...}}  or  {"seq": N, "error": {"code": CODE, "message": TEXT}}
    shim   -> daemon   {"event": "exit" | "exec_exit", ...}          at any time

Operations and their fields are in `OPS`. On a connection that has done `exec`, the operations `signal`, `kill`
and `resize` address that exec's processes; on any other, the container's.

| operation    | answer                                                                          | descriptors            |
|--------------|---------------------------------------------------------------------------------|------------------------|
| create       | pid, uid, gid, groups                                                           |                        |
| start        | started_at (ns)                                                                 |                        |
| state        | as in `hello`                                                                   |                        |
| signal       |                                                                                 |                        |
| kill         | once everything in the cgroup is dead                                           |                        |
| exec         | exec_pid, fds: names in their order                                             | in: process JSON; out  |
| leave        |                                                                                 | in: outputs            |
| attach       | fds: names in their order                                                       | out                    |
| close_stdin  |                                                                                 |                        |
| resize       |                                                                                 |                        |
| reopen_log   |                                                                                 |                        |
| update       |                                                                                 | in: resources JSON     |
| pause,resume |                                                                                 |                        |
| checkpoint   |                                                                                 |                        |

`hello`: version, id, state (a `State`'s value), pid, started_at (ns, 0: not yet), tty, lost_log_bytes, exit (the exit
record or null). `exit`: the fields of `shim/exit_record.py`. `exec_exit`: exit_code.

`create` with `restore` {"images": DIR, "work": DIR} makes no process: `start` then has the OCI runtime restore the container
from CRIU's images instead, with CRIU's logs in `work`. Until then its pid is 0.

A container that was frozen by `pause` is thawed when that session ends, if it was not before.

An exec ends with its session. After `leave` it does not: the shim reads its outputs to their end, and drops what it reads.

Descriptors that are lent stay open at the shim only as long as it needs them itself. Their names are `stdin` (write),
`stdout`, `stderr` (read) and `tty` (the pty's master: read, write, TIOCSWINSZ); those of a container (not of an exec)
share their O_NONBLOCK flag with the shim: it is set, and must stay.

A shim lives as long as its container, so a daemon meets shims that older versions of crisp have started. `hello` says
which version a shim speaks, and the daemon speaks that version to it: what came later stands in `SINCE`, and is not sent.
A shim never changes; what it says may lack what newer ones say. An operation or a field that is added, and a changed
meaning, raise `VERSION`; `OLDEST` rises only when running containers of a release may be given up.
"""

from __future__ import annotations

import enum
import json
from typing import Any, NamedTuple

from proto.errors import Code, CrispError

VERSION = 3
OLDEST = 1
"""Of the versions that the daemon still speaks."""
SINCE: dict[str, int] = {"create.restore": 2, "leave": 3}
"""The version that brought an operation (`op`) or a field (`op.field`); what is not listed was always there."""
MAX_DATAGRAM = 64 << 10  # bytes
MAX_FDS = 4

Message = dict[str, Any]


class State(enum.Enum):
    """The container's state as its shim sees it."""

    NEW = "new"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Field(NamedTuple):
    """Type of a field; `required` ones have no default."""

    kind: type | tuple[type, ...]
    required: bool = True


OPS: dict[str, dict[str, Field]] = {
    "create": {
        "rootfs": Field(dict),
        "user": Field(dict),
        "mkdirs": Field(list, False),
        "volumes": Field(list, False),
        "max_line": Field(int, False),
        "stdin": Field(bool, False),
        "stdin_once": Field(bool, False),
        "tty": Field(bool, False),
        "restore": Field(dict, False),
    },
    "start": {"log_path": Field(str)},
    "state": {},
    "signal": {"signal": Field(int)},
    "kill": {},
    "exec": {
        "tty": Field(bool, False),
        "stdin": Field(bool, False),
        "stdout": Field(bool, False),
        "stderr": Field(bool, False),
    },
    "leave": {},
    "attach": {
        "stdin": Field(bool, False),
        "stdout": Field(bool, False),
        "stderr": Field(bool, False),
    },
    "close_stdin": {},
    "resize": {"width": Field(int), "height": Field(int)},
    "reopen_log": {},
    "update": {},
    "pause": {},
    "resume": {},
    "checkpoint": {"images": Field(str), "work": Field(str)},
}


class Request(NamedTuple):
    """A datagram from the daemon whose form is sound."""

    op: str
    seq: int
    fields: Message

    def flag(self, name: str) -> bool:
        """A boolean field; absent is false."""
        return bool(self.fields.get(name, False))


class Malformed(NamedTuple):
    """A datagram that is no request; `seq` is what can be told of its number."""

    seq: int
    message: str


# Made once: `dumps` and `loads` would make and look at more, and a shim's memory grows by what it touches.
_encoder = json.JSONEncoder(separators=(",", ":"))
_decoder = json.JSONDecoder()


def encode(message: Message) -> bytes:
    """One datagram; names that are not UTF-8 travel as lone surrogates."""
    return _encoder.encode(message).encode("ascii")


def decode(datagram: bytes) -> Message | None:
    """The object in a datagram, None if it is not one."""
    try:
        found = _decoder.decode(datagram.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def decode_request(datagram: bytes) -> Request | Malformed:
    """Parse and check a request of the daemon."""
    message = decode(datagram)
    if message is None:
        return Malformed(0, "not a JSON object")
    seq = message.pop("seq", None)
    if not isinstance(seq, int):
        return Malformed(0, "no number in seq")
    op = message.pop("op", None)
    fields = OPS.get(op) if isinstance(op, str) else None
    if fields is None or not isinstance(op, str):
        return Malformed(seq, f"unknown operation {op!r}")
    for name in message:
        if name not in fields:
            return Malformed(seq, f"{op} has no field {name!r}")
    for name, field in fields.items():
        if name not in message:
            if field.required:
                return Malformed(seq, f"{op} needs {name}")
        elif not isinstance(message[name], field.kind):
            return Malformed(seq, f"{op}: {name} has the wrong type")
    return Request(op, seq, message)


def request(op: str, seq: int, fields: Message, version: int = VERSION) -> bytes:
    """A request as the daemon sends it to a shim that speaks `version`.

    Raises FAILED_PRECONDITION for what that shim cannot do; a field that says nothing (false, 0, empty) is left out.
    """
    newer = {name for name in fields if SINCE.get(f"{op}.{name}", OLDEST) > version}
    if SINCE.get(op, OLDEST) > version or any(fields[name] for name in newer):
        what = op if SINCE.get(op, OLDEST) > version else f"{op} with {', '.join(sorted(newer))}"
        raise CrispError(
            Code.FAILED_PRECONDITION, f"{what}: an older crisp started this container, and its shim cannot; restart the pod"
        )
    return encode({"op": op, "seq": seq, **{name: value for name, value in fields.items() if name not in newer}})


def check_version(version: Any) -> int:
    """The version in a `hello`, if this daemon speaks it; else FAILED_PRECONDITION."""
    if isinstance(version, int) and OLDEST <= version <= VERSION:
        return version
    spoken = str(VERSION) if OLDEST == VERSION else f"{OLDEST} to {VERSION}"
    raise CrispError(
        Code.FAILED_PRECONDITION,
        f"its shim speaks version {version} and this crisp {spoken}: another version of crisp started it; install that one "
        "again, or end the pod with it",
    )


def answer(seq: int, result: Message) -> bytes:
    """A success as the shim sends it."""
    return encode({"seq": seq, "ok": result})


def failure(seq: int, code: Code, message: str) -> bytes:
    """A failure as the shim sends it; a message too long for the datagram loses its middle."""
    return encode({"seq": seq, "error": error_fields(code, message)})


def error_fields(code: Code, message: str) -> Message:
    """The form in which an error travels, here and from the fork server."""
    if len(message) > 4096:
        message = message[:2048] + " ... " + message[-2048:]
    return {"code": code.name, "message": message}


def error_from(fields: Any) -> CrispError:
    """The CrispError that `error_fields` was made of; an unknown code is INTERNAL."""
    if not isinstance(fields, dict):
        return CrispError(Code.INTERNAL, "a shim reported an error without saying which")
    code = Code.__members__.get(str(fields.get("code")), Code.INTERNAL)
    return CrispError(code, str(fields.get("message", "")))
