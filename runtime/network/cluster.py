"""Whether this node is, or is about to be, one of a cluster, whose network plugin is to be waited for.

A node that reports itself ready before its plugin is there gets pods, CoreDNS first of all, and they would stay in the
builtin network of that node, out of everybody's reach. What comes before the first pod is the kubelet: its package, the
files that kubeadm and others write for it, and the pod CIDR that it hands over once the control plane has given one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import structlog

log = structlog.get_logger(__name__)


class Cluster:
    """What tells of a cluster. Once something has, that holds until the daemon is started anew."""

    def __init__(self, files: Sequence[str], pod_cidrs: Sequence[str]) -> None:
        self._files = files
        self._sign = ""
        self.given(pod_cidrs)

    def given(self, pod_cidrs: Sequence[str]) -> None:
        """The kubelet has handed over these pod CIDRs."""
        if pod_cidrs:
            self._note(f"the kubelet has handed over the pod CIDR {','.join(pod_cidrs)}")

    async def look(self) -> None:
        """Look for the files, if nothing has told before; not in the event loop, for a disk can hang."""
        if not self._sign and (found := await asyncio.to_thread(self._first)):
            self._note(f"{found} exists")

    def _first(self) -> str:
        return next(filter(os.path.lexists, self._files), "")

    @property
    def sign(self) -> str:
        """What tells that a cluster's network is to be expected, as of the last look; empty if nothing does."""
        return self._sign

    def _note(self, sign: str) -> None:
        if not self._sign:
            log.info("a cluster's network is expected: the builtin network takes no new pods", sign=sign)
            self._sign = sign
