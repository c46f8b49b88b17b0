"""How a container's creation or update fails because of what plugins ask for."""

from __future__ import annotations

from proto.errors import Code, CrispError


class Conflict(CrispError):
    """Two plugins want the same part of a container otherwise, or one what no plugin may: FAILED_PRECONDITION.

    The request is as good as any other; the node's plugins have to be set right.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Code.FAILED_PRECONDITION, message)


class Refused(CrispError):
    """A validator does not want what the plugins ask for: FAILED_PRECONDITION."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.FAILED_PRECONDITION, message)
