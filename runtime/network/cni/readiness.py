"""STATUS of the networks, asked seldom and remembered.

The kubelet asks for the node's status every five seconds; plugins are programs. So the answer is the last one known, and
asking anew happens beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from proto.errors import CrispError
from runtime.network.cni import chain

if TYPE_CHECKING:
    from runtime.network.cni.network_list import NetworkList
    from runtime.network.cni.plugins import Plugins

SICK_SECONDS: Final = 5.0
"""How long "not ready" is believed."""

FIRST_SECONDS: Final = 2.0
"""How long the first answer is waited for."""


class Statuses:
    """What the plugins said last."""

    def __init__(self, plugins: Plugins, seconds: float) -> None:
        self._plugins = plugins
        self._seconds = seconds
        """How long "ready" is believed."""
        self._complaint: str | None = None
        """None: not known yet."""
        self._asked_at = 0.0
        self._asking: asyncio.Task[None] | None = None

    def forget(self) -> None:
        """The configuration has changed."""
        self._complaint = None

    async def complaint(self, networks: Sequence[NetworkList]) -> str:
        """Why one of these networks takes no pods; empty if all do, or are of versions that cannot be asked."""
        asked = [network for network in networks if network.at_least("1.1.0")]
        if not asked:
            return ""
        now = asyncio.get_running_loop().time()
        age = now - self._asked_at
        stale = self._complaint is None or age > (SICK_SECONDS if self._complaint else self._seconds)
        if stale and self._asking is None:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(asked))
        if self._complaint is None and self._asking is not None:
            await asyncio.wait((self._asking,), timeout=FIRST_SECONDS)
        return "CNI plugins have not said yet whether they are ready" if self._complaint is None else self._complaint

    async def _ask(self, networks: Sequence[NetworkList]) -> None:
        try:
            for network in networks:
                await chain.status(self._plugins, network)
        except CrispError as error:
            self._complaint = error.message
        else:
            self._complaint = ""
        finally:
            self._asking = None

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            task = self._asking
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
