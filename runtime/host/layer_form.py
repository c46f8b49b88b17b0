"""What new layers are made as on this node: files or directories. With `auto` a trial decides, at each start."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from imagesvc.config import DIRECTORIES, EROFS
from kernel import modes
from proto.errors import CrispError, failed_precondition
from shim import layer_probe

if TYPE_CHECKING:
    from runtime.paths import Paths
    from runtime.shims.fork_server import ForkServer

log = structlog.get_logger(__name__)

PROBE_SECONDS: Final = 30.0
"""A disk that hangs must not keep the daemon from starting."""


@dataclass(frozen=True, slots=True)
class LayerForm:
    """`form` as a LayerStore takes it; `why` they are directories."""

    form: str
    why: str

    def describe(self) -> dict[str, str]:
        """For people."""
        return {"form": self.form, **({"why": self.why} if self.why else {})}


async def choose(wanted: str, paths: Paths, fork_server: ForkServer) -> LayerForm:
    """Raises FAILED_PRECONDITION where files are wanted and cannot be."""
    if wanted == DIRECTORIES:
        return LayerForm("directory", "images.layers says so")
    why = await _probe(paths, fork_server)
    if why and wanted == EROFS:
        raise failed_precondition(f'images.layers = "{EROFS}": {why}')
    if why:
        log.info("layers are directories", reason=why)
        return LayerForm("directory", why)
    log.info("layers are EROFS files")
    return LayerForm("erofs", "")


async def _probe(paths: Paths, fork_server: ForkServer) -> str:
    """Why layers cannot be files, or ""."""
    from imagesvc.erofs import sample  # noqa: PLC0415

    image = base64.b64encode(sample.image(layer_probe.NAME, layer_probe.TEXT)).decode()
    directory = paths.root / "layers"
    try:
        modes.own(directory, 0o711)
        arguments = {"directory": str(directory), "image": image}
        return str((await fork_server.run_job("shim.layer_probe:main", arguments, timeout=PROBE_SECONDS))["error"])
    except CrispError as error:
        return error.message
    except OSError as error:
        return f"cannot write to {directory}: {error.strerror}"
