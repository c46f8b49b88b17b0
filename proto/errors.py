"""The one error family that crosses rooms.

    CrispError
    ├── raised with a `Code` wherever something fails in a way that a caller can act on
    └── turned into a gRPC status by `runtime/api/server.py`, and nowhere else

Any other exception that reaches the server is a bug and becomes INTERNAL, but for the OSErrors of a host in need.
"""

from __future__ import annotations

import enum
import errno

EXHAUSTED = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS))
"""What any system call may meet on a host that has run out of something: no bug, and worth a retry."""


class Code(enum.Enum):
    """Why a call failed; the names are gRPC's, so that the boundary maps them by name."""

    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    INVALID_ARGUMENT = "invalid argument"
    DEADLINE_EXCEEDED = "deadline exceeded"
    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    PERMISSION_DENIED = "permission denied"
    RESOURCE_EXHAUSTED = "resource exhausted"
    FAILED_PRECONDITION = "failed precondition"
    ABORTED = "aborted"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    UNAUTHENTICATED = "unauthenticated"


class CrispError(Exception):
    """A failure with a code and a message for the person who reads `kubectl describe`.

    The message names the path, digest or id concerned and, where there is something to do, what to do.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def not_found(message: str) -> CrispError:
    """What was named does not exist."""
    return CrispError(Code.NOT_FOUND, message)


def invalid(message: str) -> CrispError:
    """The request can never succeed as it stands."""
    return CrispError(Code.INVALID_ARGUMENT, message)


def failed_precondition(message: str) -> CrispError:
    """The request is sound, but not in the present state of its object or host."""
    return CrispError(Code.FAILED_PRECONDITION, message)
