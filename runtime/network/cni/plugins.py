"""The plugins' programs: found by name, asked for their versions, and called."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from proto.errors import Code, CrispError, failed_precondition
from runtime.network.cni import process, protocol
from runtime.network.cni.network_list import NetworkList

PARALLEL: Final = 16
"""Calls under way at once."""

VERSION_SECONDS: Final = 10.0
"""How long a plugin may think about its version."""


class Plugins:
    """Programs in some directories, the first that has a name being the one."""

    def __init__(self, bin_dirs: Sequence[Path], seconds: float) -> None:
        self._bin_dirs = bin_dirs
        self._seconds = seconds
        """How long one call may take."""
        self._gate = asyncio.Semaphore(PARALLEL)
        self._versions: dict[tuple[str, int, int], set[str]] = {}
        """By path, time of change and size of the program, so that another program is asked anew."""

    def find(self, name: str) -> str:
        """Path of a plugin. Raises FAILED_PRECONDITION if there is none."""
        for directory in self._bin_dirs:
            path = str(directory / name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        places = ", ".join(str(directory) for directory in self._bin_dirs)
        raise failed_precondition(f"plugin {name} is in none of {places}")

    async def versions(self, name: str, asking: str) -> set[str]:
        """Versions of the protocol that a plugin supports. Raises FAILED_PRECONDITION if it is missing or does not say."""
        path = self.find(name)
        status = os.stat(path)
        key = path, status.st_mtime_ns, status.st_size
        if key not in self._versions:
            environment = protocol.environment("VERSION", self._bin_dirs)
            question = json.dumps({"cniVersion": asking}).encode()
            try:
                outcome = await process.run(path, environment, question, seconds=VERSION_SECONDS)
            except (OSError, TimeoutError) as error:
                raise failed_precondition(f"plugin {path} cannot be asked for its version: {_reason(error)}") from None
            versions = protocol.supported_versions(outcome.output)
            if not versions:
                raise failed_precondition(f"plugin {path} does not say which versions of CNI it supports")
            self._versions[key] = versions
        return self._versions[key]

    async def call(
        self,
        command: str,
        network: NetworkList,
        plugin: Mapping[str, Any],
        target: protocol.Target | None,
        *,
        held: tuple[int, ...] = (),
        **inputs: Any,
    ) -> bytes:
        """Have a plugin do something; its standard output. `inputs` are those of `protocol.configuration`.

        Raises INTERNAL or UNAVAILABLE with the plugin's own words, DEADLINE_EXCEEDED, FAILED_PRECONDITION if it is missing.
        """
        name = str(plugin["type"])
        path = self.find(name)
        environment = protocol.environment(command, self._bin_dirs, target)
        data = json.dumps(protocol.configuration(network, plugin, **inputs)).encode()
        async with self._gate:
            try:
                outcome = await process.run(path, environment, data, seconds=self._seconds, inherited=held)
            except TimeoutError:
                late = f"did not finish {command} within {self._seconds:g} s and was killed"
                raise CrispError(Code.DEADLINE_EXCEEDED, f"network {network.name}: plugin {name} {late}") from None
            except OSError as error:
                raise failed_precondition(f"network {network.name}: cannot run plugin {path}: {error.strerror}") from None
        if outcome.status != 0:
            raise protocol.failure(network.name, name, command, outcome.status, outcome.output, outcome.errors)
        return outcome.output


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {VERSION_SECONDS:g} s"
    return str(getattr(error, "strerror", "") or error)
