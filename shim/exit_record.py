"""The exit record: what is left of a container when its shim has gone.

    <bundle>/exit.json.tmp  --fsync-->  rename  <bundle>/exit.json  --fsync of the directory

It is durable before anyone is told, and never written again.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

NAME = "exit.json"
MAX_MESSAGE = 4096  # characters, as the kubelet bounds a termination message


class ExitRecord(NamedTuple):
    """How a container ended."""

    exit_code: int
    """128 + n if signal n killed it."""
    signal: int
    """0 if it exited by itself."""
    oom_killed: bool
    """Whether the OOM killer ended any process of the container's cgroup."""
    started_at: int
    """ns since the epoch; 0 if it was never started."""
    finished_at: int
    """ns since the epoch."""
    reason: str = ""
    """Why, where the code does not say it."""
    message: str = ""
    """The reason in words, for people; at most MAX_MESSAGE characters."""


def write(bundle: str, record: ExitRecord) -> None:
    """Make the record durable."""
    path = os.path.join(bundle, NAME)
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(record._asdict()).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(path + ".tmp", path)
    directory = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(bundle: str) -> ExitRecord | None:
    """The record in `bundle`, None if there is none or it is not one."""
    try:
        with open(os.path.join(bundle, NAME), "rb") as file:
            return from_fields(json.loads(file.read()))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def from_fields(fields: Any) -> ExitRecord | None:
    """The record that `_asdict` was made of; unknown fields are left out, for a newer shim may have written them."""
    if not isinstance(fields, dict):
        return None
    try:
        return ExitRecord(**{name: fields[name] for name in ExitRecord._fields if name in fields})
    except TypeError:
        return None
