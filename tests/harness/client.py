"""A gRPC client of the daemon: what kubelets and crictl are, written by others than the command's own."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc

from proto import api_pb2_grpc
from proto.errors import Code, CrispError
from runtime import limits

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Client:
    """A connection to a daemon; use it as a context manager."""

    def __init__(self, socket_path: str) -> None:
        """Connect; UNAVAILABLE if there is no socket."""
        if not os.path.exists(socket_path):
            raise CrispError(Code.UNAVAILABLE, f"no daemon at {socket_path}")
        self._channel = grpc.insecure_channel(
            f"unix://{os.path.abspath(socket_path)}",
            options=(
                ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES),
                # For who waits for a daemon that is being started anew; by default gRPC waits up to two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ),
        )
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def admin(self) -> Any:
        """What CRI has no calls for."""
        from proto import admin_pb2_grpc  # noqa: PLC0415  most commands do without

        return admin_pb2_grpc.AdminStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()
