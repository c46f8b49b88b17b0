"""Client side of the socket, for the `crisp` command: what it does goes through the same door as the kubelet's calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from proto import api_pb2_grpc
from proto.errors import Code, CrispError
from runtime import limits

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

T = TypeVar("T")


class Client:
    """A connection to a daemon; use it as a context manager."""

    def __init__(self, socket_path: str) -> None:
        """Connect; UNAVAILABLE if there is no socket."""
        if not os.path.exists(socket_path):
            raise CrispError(
                Code.UNAVAILABLE,
                f"no daemon at {socket_path}: start one with `crisp serve`, or name its --socket",
            )
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


AWAY_SECONDS: Final = 60.0
"""For which a daemon may be away, being started anew, until a command that waits for something gives it up."""
_LOOK_SECONDS: Final = 0.1
_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What calls end with whose daemon has gone, and those to where none is."""


def patiently(call: Callable[[], T], seconds: float = AWAY_SECONDS) -> T:
    """Make a call that may be made again, until a daemon answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if not is_away(error) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)


def is_away(error: grpc.RpcError) -> bool:
    """Whether a call has failed for want of a daemon."""
    return error.code() in _AWAY
