"""The worker server: a small process that forks one child for each piece of blocking work on layers.

    daemon ──SEQPACKET: the job's socket, a file of its request──▶ server ──fork──▶ child ──SEQPACKET: replies──▶ daemon

Requests are JSON in a memfd, since they are of any size.

The server imports what the jobs need once; a fork of it takes about a millisecond. It has one thread, no asyncio and no
gRPC. It ends when the daemon closes its socket. A child speaks to the daemon over the job's socket alone (jobs.py): first it
sends a pidfd of itself, so that the daemon can kill it whatever it is doing, at last its result. Closing is how either side
learns that the other is gone; and the kernel kills the server with the daemon, and its children with it, so that nobody
writes into a directory that the next daemon removes.
"""

from __future__ import annotations

import array
import gc
import json
import os
import signal
import socket
import sys

from imagesvc.worker import jobs
from kernel import syscalls


def serve(control: socket.socket) -> None:
    """Takes requests until the daemon goes."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while True:
        data, descriptors = _receive(control)
        if not data:
            return
        if len(descriptors) != 2:  # they did not fit into this process: the caller sees its socket close
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        pid = os.fork()
        if pid:
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        control.close()
        gc.disable()  # a job makes no circles, and ends soon: looking for some takes a twentieth of its time
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        _run_child(descriptors[1], socket.socket(fileno=descriptors[0]))


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    data, ancillary, _flags, _address = control.recvmsg(16, socket.CMSG_SPACE(2 * descriptors.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload)
    return data, list(descriptors)


def _run_child(request_file: int, channel: socket.socket) -> None:
    """Never returns: what a child does ends with the child."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pidfd = os.pidfd_open(os.getpid())
        socket.send_fds(channel, [b"{}"], [pidfd])
        os.close(pidfd)
        with open(request_file, "rb") as stream:
            stream.seek(0)
            request = json.load(stream)
        channel.send(json.dumps(jobs.run(request, channel)).encode())
        status = 0
    except OSError:
        # The daemon is gone, or killed this job's socket: nobody is left to tell.
        pass
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)
