"""A CNI plugin whose behaviour a test decides, and that writes down what it was told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCRIPT = """#!/bin/bash
input=$(cat)
printf '%s' "$input" > {folder}/input.$CNI_COMMAND
env | grep ^CNI_ > {folder}/env.$CNI_COMMAND
echo "$CNI_COMMAND" >> {folder}/calls  # last: who has seen the call may read the rest
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}}'
    exit
fi
. {folder}/behaviour
"""

RESULT = '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]}'


class FakePlugin:
    """The plugin `name` in a directory of its own."""

    def __init__(self, folder: Path, name: str = "fake") -> None:
        self.name = name
        self._folder = folder / name
        self.bin_dir = folder / f"{name}.bin"
        for directory in (self._folder, self.bin_dir):
            directory.mkdir(parents=True)
        program = self.bin_dir / name
        program.write_text(SCRIPT.format(folder=self._folder))
        program.chmod(0o755)
        self.behave()

    def behave(self, **commands: str) -> None:
        """What it does at each command, as shell; ADD returns an address unless told otherwise."""
        commands.setdefault("ADD", f"echo '{RESULT}'")
        cases = "\n".join(f"{name}) {script} ;;" for name, script in commands.items())
        draft = self._folder / "draft"
        draft.write_text(f'case "$CNI_COMMAND" in\n{cases}\nesac\n')
        draft.rename(self._folder / "behaviour")

    def calls(self) -> list[str]:
        """Commands so far, but for VERSION."""
        try:
            lines = (self._folder / "calls").read_text().split()
        except FileNotFoundError:
            return []
        return [line for line in lines if line != "VERSION"]

    def told(self, command: str) -> Any:
        """The configuration at the last call of a command."""
        return json.loads((self._folder / f"input.{command}").read_text())

    def environment(self, command: str) -> dict[str, str]:
        """CNI_* at the last call of a command."""
        lines = (self._folder / f"env.{command}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)
