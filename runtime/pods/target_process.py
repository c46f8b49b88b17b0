"""The process whose PID namespace a container is to share (namespace mode TARGET), held while the container is made.

The OCI runtime is given its pid, which may be another process's once it has ended. A pidfd tells afterwards that it was the
same one all the time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid
from runtime.lifecycle import ContainerState

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container


@asynccontextmanager
async def held(node: Node, container: Container) -> AsyncIterator[int]:
    """Its pid, 0 if the container asks for no such thing; FAILED_PRECONDITION if it ends before this does."""
    options = container.record.config.linux.security_context.namespace_options
    if options.pid != cri.TARGET:
        yield 0
        return
    target = node.container(options.target_id)
    if target.sandbox is not container.sandbox:
        raise invalid(f"target container {options.target_id} belongs to another pod")
    ended = failed_precondition(f"target container {options.target_id} does not run")
    if target.record.state is not ContainerState.RUNNING or target.shim is None:
        raise ended
    try:
        pidfd = os.pidfd_open(target.record.pid)
    except ProcessLookupError:
        raise ended from None
    try:
        # As long as the shim says that it runs it has not been reaped, and the pid is its own.
        if (await target.shim.state())["state"] not in ("running", "paused"):
            raise ended
        yield target.record.pid
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        raise ended from None
    finally:
        os.close(pidfd)
