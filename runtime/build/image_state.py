"""What an image is going to be, instruction by instruction: its configuration, its history, and the key of what was done.

    base's document ─▶ instructions that change the configuration alone ─▶ written down with the next layer, or at the end

The key says all that has gone into it so far: two builds that come to the same key have the same image, however they differ
elsewhere. It is a chain: each instruction's begins with the one before.
"""

from __future__ import annotations

import copy
import hashlib
import json
import posixpath
from collections.abc import Mapping
from typing import Any, Final

from imagesvc.containerfile.instructions import (
    Cmd,
    Entrypoint,
    Env,
    Expose,
    HealthCheck,
    Instruction,
    Label,
    Maintainer,
    OnBuild,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from imagesvc.platforms import Platform
from imagesvc.references import STEPS

DEFAULT_SHELL: Final = ("/bin/sh", "-c")
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_OF_LAYERS: Final = ("rootfs", "history", "created")
"""What the daemon writes itself."""


class ImageState:
    """An image in the making."""

    def __init__(self, image_id: str, document: Mapping[str, Any], seed: str) -> None:
        """`image_id`: whose layers there are so far, empty for none; `document`: its configuration document."""
        self.image_id = image_id
        self.base = image_id
        """What it was begun with."""
        self.document = {name: copy.deepcopy(value) for name, value in document.items() if name not in _OF_LAYERS}
        self.config: dict[str, Any] = self.document.setdefault("config", {}) or {}
        self.document["config"] = self.config
        self.history: list[dict[str, Any]] = []
        """Lines that are in no image yet."""
        self.changed = not image_id
        """The configuration is not that of the image any more."""
        self.fresh_cmd = False
        """CMD comes from this Containerfile: an ENTRYPOINT takes away the base's alone."""
        self.key = _digest(seed, image_id)

    @classmethod
    def scratch(cls, platform: Platform, seed: str) -> ImageState:
        """FROM scratch."""
        document: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            document["variant"] = platform.variant
        return cls("", {**document, "config": {"Env": [f"PATH={DEFAULT_PATH}"], "WorkingDir": "/"}}, seed)

    def copy(self) -> ImageState:
        """FROM an earlier stage: it goes on from there."""
        other = copy.deepcopy(self)
        other.fresh_cmd = False
        return other

    @property
    def environment(self) -> list[str]:
        """NAME=VALUE, as the image has them."""
        return list(self.config.get("Env") or ())

    @property
    def workdir(self) -> str:
        """Where relative paths begin."""
        return str(self.config.get("WorkingDir") or "/")

    @property
    def shell(self) -> list[str]:
        """What runs a command that is a text."""
        return list(self.config.get("Shell") or DEFAULT_SHELL)

    @property
    def step_name(self) -> str:
        """The name of the image that has all that is done so far."""
        return f"{STEPS}:{self.key}"

    def did(self, instruction: Instruction, *parts: object) -> None:
        """Lengthen the chain."""
        self.key = _digest(self.key, instruction.keyword, *parts)

    def note(self, instruction: Instruction, text: str = "") -> None:
        """A line of history for it."""
        self.history.append({"created_by": text or instruction.text, "comment": "crisp build"})

    def now_is(self, image_id: str) -> None:
        """There is an image of all that is done so far."""
        self.image_id, self.history, self.changed = image_id, [], False

    def enter(self, instruction: Instruction, environment: Mapping[str, str]) -> bool:
        """Take in an instruction that changes the configuration alone; False if it is another one. Values are expanded.

        `environment` are the image's variables with those of this instruction.
        """
        if isinstance(instruction, Env):
            self.config["Env"] = [f"{name}={value}" for name, value in environment.items()]
        elif isinstance(instruction, (Cmd, Entrypoint)):
            self._command(instruction)
        elif isinstance(instruction, Workdir):
            path = posixpath.normpath(posixpath.join(self.workdir, instruction.path))
            self.config["WorkingDir"] = "/" + path.lstrip("/")  # POSIX leaves two slashes as they are
        elif not self._simple(instruction):
            return False
        self.config = {name: value for name, value in self.config.items() if value not in (None, [], {}, "")}
        self.document["config"] = self.config
        self.changed = True
        self.note(instruction)
        self.did(instruction, json.dumps(self.document, sort_keys=True))
        return True

    def _simple(self, instruction: Instruction) -> bool:
        if isinstance(instruction, Label):
            self.config["Labels"] = {**(self.config.get("Labels") or {}), **dict(instruction.pairs)}
        elif isinstance(instruction, User):
            self.config["User"] = instruction.user
        elif isinstance(instruction, Expose):
            ports: dict[str, Any] = {port if "/" in port else f"{port}/tcp": {} for port in instruction.ports}
            self.config["ExposedPorts"] = {**(self.config.get("ExposedPorts") or {}), **ports}
        elif isinstance(instruction, Volume):
            self.config["Volumes"] = {**(self.config.get("Volumes") or {}), **{path: {} for path in instruction.paths}}
        elif isinstance(instruction, Shell):
            self.config["Shell"] = list(instruction.command)
        elif isinstance(instruction, StopSignal):
            self.config["StopSignal"] = instruction.signal
        elif isinstance(instruction, HealthCheck):
            self.config["Healthcheck"] = _health(instruction)
        elif isinstance(instruction, OnBuild):
            self.config["OnBuild"] = [*(self.config.get("OnBuild") or ()), instruction.trigger]
        elif isinstance(instruction, Maintainer):
            self.document["author"] = instruction.name
        else:
            return False
        return True

    def _command(self, instruction: Cmd | Entrypoint) -> None:
        words = [*self.shell, *instruction.command] if instruction.shell else list(instruction.command)
        if isinstance(instruction, Cmd):
            self.config["Cmd"], self.fresh_cmd = words, True
            return
        self.config["Entrypoint"] = words
        if not self.fresh_cmd:  # a base's arguments are not for this program
            self.config["Cmd"] = None


def _health(instruction: HealthCheck) -> dict[str, Any]:
    """As docker has it in an image's configuration."""
    if not instruction.command:
        return {"Test": ["NONE"]}
    told = {
        "Test": ["CMD-SHELL" if instruction.shell else "CMD", *instruction.command],
        "Interval": instruction.interval,
        "Timeout": instruction.timeout,
        "StartPeriod": instruction.start_period,
        "StartInterval": instruction.start_interval,
        "Retries": instruction.retries,
    }
    return {name: value for name, value in told.items() if value}


def _digest(*parts: object) -> str:
    """Of parts that cannot run into each other."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
