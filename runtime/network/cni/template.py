"""The network configuration that is made from a template once the cluster has given the node its pod CIDR."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from proto.errors import CrispError, invalid
from runtime.network.cni import go_template, network_list

if TYPE_CHECKING:
    from runtime.network.cni.directory import Directory

log = structlog.get_logger(__name__)

FILE_NAME: Final = "10-crisp.conflist"


class Template:
    """A template and the directory that its outcome belongs into."""

    def __init__(self, path: Path | None, directory: Directory) -> None:
        self._path = path
        self._directory = directory
        self.problem = "" if path is None else f"{path}: the kubelet has not told the node's pod CIDR yet"
        """Why nothing came of it; empty otherwise."""

    async def render(self, cidrs: Sequence[str]) -> None:
        """Write the configuration for these pod CIDRs, unless the directory has another one."""
        if self._path is None:
            return
        await self._directory.read()
        self.problem = ""
        if set(self._directory.files) - {FILE_NAME}:
            log.info("the template is not needed: there is a CNI configuration", template=str(self._path))
            return
        try:
            text = go_template.render(self._text(), _values(cidrs))
            network_list.parse(text, single=False)
        except CrispError as error:
            self.problem = f"{self._path}: {error.message}"
            return
        target = self._directory.path / FILE_NAME
        try:
            _replace(target, text)
        except OSError as error:
            self.problem = f"{target}: cannot be written: {error.strerror}"
            return
        await self._directory.read()

    def _text(self) -> str:
        assert self._path is not None
        try:
            return self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise invalid(f"cannot be read: {getattr(error, 'strerror', '') or error}") from None


def _values(cidrs: Sequence[str]) -> dict[str, go_template.Value]:
    """By the names that containerd has for them."""
    families = {ip_network(cidr).version for cidr in cidrs}
    routes = ["0.0.0.0/0"] * (4 in families) + ["::/0"] * (6 in families)
    return {"PodCIDR": cidrs[0], "PodCIDRRanges": list(cidrs), "Routes": routes}


def _replace(target: Path, text: str) -> None:
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.new")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, target)
