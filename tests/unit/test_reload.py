"""runtime/reload.py: what differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from runtime import reload
from runtime.config.settings import Config, HandlerConfig, LogConfig


def test_differences() -> None:
    old = Config()
    assert list(reload.differences(old, Config())) == []
    new = dataclasses.replace(old, log=LogConfig(level="debug"), state=Path("/x"), runtimes={"a": HandlerConfig()})
    assert sorted(reload.differences(old, new)) == ["log.level", "runtimes", "state"]
