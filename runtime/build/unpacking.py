"""A context that comes as an archive: unpacked by a process that is shut in the directory that gets it."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from imagesvc.tar.header import TarError
from imagesvc.tar.inflate import InflateError
from kernel import syscalls
from kernel.descriptors import write_all
from proto.errors import Code, CrispError, invalid
from runtime.build import archives, jobs, shut_in
from runtime.build.placing import Placer


def unpack(stream: archives.Stream, directory: str) -> None:
    """Unpacks an archive into an empty directory; INVALID_ARGUMENT where it is none, or not sound."""
    jobs.load()
    told, telling = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        os.close(told)
        _unpack(stream, directory, telling, parent)
    os.close(telling)
    with os.fdopen(told, "rb") as outcome:
        problem = outcome.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if problem:
        raise invalid(f"the context on the standard input: {problem}")
    if status:
        raise CrispError(Code.ABORTED, "the process that unpacks the context was killed")


def _unpack(stream: archives.Stream, directory: str, telling: int, parent: int) -> NoReturn:
    status = 1
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            shut_in.enter(os.open(directory, os.O_PATH | os.O_DIRECTORY))
            placer = Placer("/", devices=False)
            for event in archives.events(stream):
                placer.take(event)
            placer.finish()
            status = 0
    except (TarError, InflateError) as error:
        write_all(telling, str(error).encode(errors="replace"))
    except OSError as error:
        write_all(telling, jobs.reason(error).encode(errors="replace"))
    finally:
        os._exit(status)
