"""The fork server: a small single-threaded process that forks preloaded jobs in about a millisecond.

    python -m shim.forkserver --fd N --preload MODULE ...

N is one end of a SOCK_SEQPACKET pair; the other end's owner is the only client. Nothing here may import grpc or start a
thread. The server ends when the other end is closed; children of jobs that call `setsid` survive it.

    client -> server   {"job": "module:function", "args": {...}}  + descriptors: the report socket, then the job's own
                       or * for a large one, which is in a memory file: the last descriptor
    server -> client   {"pid": N}  + a pidfd of it                   in the order of the requests
    child  -> report   {"ok": {...}} or {"error": {...}}, then end of file

A job is `function(args, fds, report)`: what it returns is reported, unless it has called `report` before; what
it raises is reported as an error. End of file without a report means that it was killed.

Memory: modules are imported once, and `gc.freeze` keeps the collector's marks off the pages that the children share.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from kernel import fd_messages, signals, syscalls
from kernel.descriptors import write_all
from proto import shim_protocol
from proto.errors import Code, CrispError
from shim import inheritance, packing

MAX_REQUEST = 1 << 16  # bytes; a datagram of arguments
MAX_LARGE_REQUEST = 16 << 20  # bytes
IN_LAST_FD = b"*"
"""Instead of a request that is larger than MAX_REQUEST: it is in the memory file that is the last descriptor."""
MAX_FDS = 16
_SIGCHLD, _SIGINT = int(signal.SIGCHLD), int(signal.SIGINT)
# glibc's own limit grows with the first large buffer that is freed; memory would then stay with the shim.
MMAP_THRESHOLD = 64 << 10  # bytes

Report = Callable[[dict[str, Any]], None]
Job = Callable[[dict[str, Any], list[int], Report], dict[str, Any] | None]


def main() -> None:
    """Preload the modules and serve until the client goes."""
    # By hand: argparse would stay in the memory of every shim.
    match sys.argv[1:]:
        case ["--fd", number, "--preload", *modules] if number.isdigit():
            fd = int(number)
        case _:
            sys.exit("usage: python -m shim.forkserver --fd N --preload MODULE ...")
    for name in modules:
        importlib.import_module(name)
    _detach_from_terminal()
    inheritance.shed()
    for caught in signal.valid_signals():
        # What the daemon's parent made it ignore (nohup does) would reach every container.
        if signal.getsignal(caught) == signal.SIG_IGN and caught not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(caught, signal.SIG_DFL)
    # A child that ended is reaped by the kernel: the server never waits for one.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    syscalls.fix_malloc_threshold(MMAP_THRESHOLD)
    channel = socket.SocketType(fileno=fd)
    os.set_inheritable(fd, False)
    gc.collect()
    packing.fill_holes()
    gc.freeze()
    serve(channel)


def _detach_from_terminal() -> None:
    """Keep only stderr of what the parent had open; a job must not hold the daemon's stdin or stdout."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    os.chdir("/")


def serve(channel: socket.SocketType) -> None:
    """Answer requests until the other end is closed."""
    while True:
        try:
            datagram, fds, _ = fd_messages.receive(channel, MAX_REQUEST, MAX_FDS)
        except ConnectionResetError:
            return
        if not datagram:
            return
        if datagram == IN_LAST_FD:
            datagram = take(fds.pop())
        request = json.loads(datagram)  # here, so that a child's memory does not grow by the parser's
        pid = os.fork()
        if pid == 0:
            os.close(channel.detach())
            run_child(request, fds)
        answer(channel, pid)
        for fd in fds:
            os.close(fd)


def take(fd: int) -> bytes:
    """The content of a memory file, which is closed."""
    with open(fd, "rb", buffering=0) as file:
        return os.pread(file.fileno(), MAX_LARGE_REQUEST, 0)


def answer(channel: socket.SocketType, pid: int) -> None:
    """Tell the client the child's pid, with a pidfd unless the child has ended already."""
    try:
        pidfds = [os.pidfd_open(pid)]
    except ProcessLookupError:
        pidfds = []
    try:
        fd_messages.send(channel, b'{"pid": %d}' % pid, pidfds)
    except (BrokenPipeError, ConnectionResetError):
        return  # the client has gone: the next receive says so
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def run_child(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Run the requested job in the forked child and leave."""
    code = 1
    try:
        signals.set_handler(_SIGCHLD, signals.DEFAULT)
        signals.set_handler(_SIGINT, signals.DEFAULT)
        code = run_job(request["job"], request["args"], fds[1:], fds[0])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_job(name: str, args: dict[str, Any], fds: list[int], channel: int) -> int:
    """Call the job and report once; the exit code."""
    reported = False

    def report(message: dict[str, Any]) -> None:
        nonlocal reported
        if not reported:
            reported = True
            try:
                write_all(channel, shim_protocol.encode(message))
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has gone; the job goes on
            os.close(channel)

    try:
        module, _, function = name.partition(":")
        job: Job = getattr(sys.modules.get(module) or importlib.import_module(module), function)
        result = job(args, fds, lambda message: report({"ok": message}))
        report({"ok": result or {}})
    except CrispError as error:
        report({"error": shim_protocol.error_fields(error.code, error.message)})
        return 1
    except OSError as error:
        report({"error": shim_protocol.error_fields(code_of(error), str(error))})
        return 1
    except Exception as error:
        sys.excepthook(*sys.exc_info())
        report({"error": shim_protocol.error_fields(Code.INTERNAL, f"{name}: {error!r}")})
        return 1
    return 0


def code_of(error: OSError) -> Code:
    """The code that a failed system call gets when nothing better is known."""
    if isinstance(error, FileNotFoundError):
        return Code.NOT_FOUND
    return Code.PERMISSION_DENIED if isinstance(error, PermissionError) else Code.INTERNAL


if __name__ == "__main__":
    main()
