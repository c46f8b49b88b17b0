"""manifests/crisp.toml has every key, with its default and its meaning."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from runtime.config import settings
from runtime.config.document import document

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "crisp.toml"


def test_the_manifest_is_current() -> None:
    assert MANIFEST.read_text() == document(), "run `crisp config > manifests/crisp.toml`"


def test_it_says_the_defaults() -> None:
    assert settings.load(MANIFEST) == settings.Config()


def test_every_key_is_there_and_explained() -> None:
    lines = document().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\w+ = ", line):
            assert lines[number - 1].startswith("# "), f"{line}: what does it mean?"
    assert keys(tomllib.loads(document())) == keys(dataclasses.asdict(settings.Config()))


def keys(table: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        if isinstance(value, dict):
            found |= keys(value, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found
