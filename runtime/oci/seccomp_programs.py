"""seccomp filters that are built once, and not for each container: half of the time of crun's `create`.

    the first container with some rules   the OCI runtime builds the filter, as ever, and keeps it in its state directory
                                          (<root>/<id>/seccomp.bpf): from there it is taken, into this process's memory
    the second                            a probe begins: does this runtime obey a filter that is given to it?
    further ones                          are given it, in an annotation beside the rules, which stay in the configuration;
                                          what the runtime keeps must then be that very filter, or the create fails

So the filter is the runtime's own in any case; there is no second compiler that could differ. It is known by all that it is
made of: the rules, whole and in their order, and the very file of the runtime's program. It lies in no file of crisp's. It
is forgotten after MAX_AGE, for the libraries of the runtime can be replaced under it.

What is out of the ordinary is left to the runtime: scripts around crun, listeners, flags, hooks (one could change what is
taken), and configurations that talk to crun about seccomp themselves.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from proto import oci_annotations
from proto.errors import Code, CrispError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runtime.host.handlers import Handler

log = structlog.get_logger(__name__)

MAX_AGE: Final = 600.0
"""Seconds after which a filter is built anew."""
AGAIN: Final = 600.0
"""Seconds until a runtime that has failed its probe is probed again: the host may have been too busy for it."""
MAX_KNOWN: Final = 64
"""Filters that are kept."""
MAX_BYTES: Final = 4096 * 8
"""Of a filter: BPF_MAXINSNS instructions of 8 bytes each (linux/bpf_common.h)."""
RUNTIME: Final = "crun"
"""That builds filters so, and obeys. What a script around it makes of a container's rules nobody knows."""
TALK: Final = "run.oci.seccomp"
"""With this begin annotations by which crun is told about seccomp."""


@dataclass(frozen=True, slots=True)
class Use:
    """How one container comes to its filter."""

    key: str = ""
    """What the filter is known by; empty if it is left to the runtime."""
    program: bytes = b""
    """The filter that the runtime is given; empty if it builds it."""
    runtime: str = ""
    """The very file of the OCI runtime that it is for."""


@dataclass(slots=True)
class _Known:
    program: bytes
    since: float
    asked_again: bool = False


class Programs:
    """The filters that are known, and which OCI runtimes can be given one."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._obeys: dict[str, bool] = {}
        """By the file of a runtime's program."""
        self._failed_at: dict[str, float] = {}
        """When runtimes failed their probe."""
        self._probes: dict[str, asyncio.Task[None]] = {}

    def use(self, document: dict[str, Any], handler: Handler) -> Use:
        """What is done for a container with this OCI configuration. Reads the file system."""
        rules = document["linux"].get("seccomp")
        if rules is None or handler.features.program != RUNTIME or _out_of_the_ordinary(document, rules):
            return Use()
        program = _program_file(handler)
        key = hashlib.sha256(json.dumps([program, rules]).encode()).hexdigest()
        known = self._known.get(key)
        if known is None or time.monotonic() - known.since > MAX_AGE:
            self._known.pop(key, None)
            return Use(key, runtime=program)
        known.asked_again = True
        return Use(key, known.program if self._obeys.get(program) else b"", program)

    def settle(self, use: Use, handler: Handler, container_id: str, pid: int) -> None:
        """Look at the filter that the runtime keeps for a container that was just created. Reads the file system.

        INTERNAL if it was given one and keeps another. Of one whose init `pid` is no more, which somebody has killed, the
        state is being removed, file by file.
        """
        if not use.key:
            return
        try:
            kept = (Path(handler.root) / container_id / oci_annotations.KEPT_FILTER).read_bytes()
        except OSError:
            kept = b""
        if use.program:
            if kept != use.program and (kept or os.path.exists(f"/proc/{pid}")):
                self._obeys[use.runtime] = False
                self._known.pop(use.key, None)
                raise CrispError(Code.INTERNAL, f"{handler.name} did not take the seccomp filter that it was given")
        elif 0 < len(kept) <= MAX_BYTES and len(kept) % 8 == 0 and use.key not in self._known:
            self._known[use.key] = _Known(kept, time.monotonic())
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def consider(self, use: Use, handler: Handler, probe: Callable[[Handler], Awaitable[str]]) -> None:
        """Find out whether the runtime can be given filters, once one is wanted for the second time."""
        known = self._known.get(use.key)
        if known is None or not known.asked_again or use.program:
            return
        program = use.runtime
        failed_at = self._failed_at.get(program)
        unknown = program not in self._obeys or (failed_at is not None and time.monotonic() - failed_at > AGAIN)
        if unknown and program not in self._probes:
            self._probes[program] = asyncio.create_task(self._probe(program, handler, probe))

    async def _probe(self, program: str, handler: Handler, probe: Callable[[Handler], Awaitable[str]]) -> None:
        try:
            problem = await probe(handler)
        except (CrispError, OSError) as error:
            problem = str(error)
        finally:
            self._probes.pop(program, None)
        self._obeys[program] = not problem
        self._failed_at.pop(program, None)
        if problem:
            self._failed_at[program] = time.monotonic()
        log.debug("seccomp filters for an OCI runtime", handler=handler.name, problem=problem)

    async def close(self) -> None:
        """End what is under way."""
        probes = list(self._probes.values())
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


def annotated(document: dict[str, Any], use: Use) -> dict[str, Any]:
    """The configuration as the OCI runtime gets it."""
    if not use.program:
        return document
    given = {oci_annotations.FILTER: base64.b64encode(use.program).decode()}
    return document | {"annotations": document.get("annotations", {}) | given}


def _out_of_the_ordinary(document: dict[str, Any], rules: dict[str, Any]) -> bool:
    return (
        bool(document.get("hooks"))
        or not rules.keys() <= {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
        or any(name.startswith(TALK) for name in document.get("annotations", ()))
        or "SCMP_ACT_NOTIFY" in (rules["defaultAction"], *(rule.get("action") for rule in rules.get("syscalls", ())))
    )


def _program_file(handler: Handler) -> str:
    """The very file: a program that is replaced is another."""
    found = os.stat(handler.path)
    return f"{handler.path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
