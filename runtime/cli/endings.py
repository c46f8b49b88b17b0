"""How containers end under who waits for them: also those that somebody removes meanwhile, as `crisp rm -f` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proto.errors import Code
from runtime.client import CallError, patiently

if TYPE_CHECKING:
    from proto import api_pb2 as cri
    from runtime.client import Client


def status_of(client: Client, container_id: str) -> cri.ContainerStatus:
    """A container's status, from a daemon that may be away for a while. One that was removed a short while ago has ended."""
    from proto import admin_pb2 as admin  # noqa: PLC0415  --help needs no protobuf
    from proto import api_pb2 as cri  # noqa: PLC0415

    request = cri.ContainerStatusRequest(container_id=container_id)
    try:
        found: cri.ContainerStatus = patiently(lambda: client.runtime.ContainerStatus(request)).status
    except CallError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        code = client.admin.RemovedContainer(admin.RemovedContainerRequest(container_id=container_id)).exit_code
        return cri.ContainerStatus(
            id=container_id, state=cri.CONTAINER_EXITED, exit_code=code, reason="Error" if code else "Completed"
        )
    return found
