"""Build hook: an installed crisp adds one name to site-packages; the rooms lie inside it (see crisp.py)."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOMS = ("proto", "kernel", "shim", "imagesvc", "runtime")


class WheelLayout(BuildHookInterface):
    """Places the rooms in wheels; an editable installation uses the checkout as it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if version == "editable":
            return
        build_data["force_include"].update({"crisp.py": "crisp/__init__.py", **{room: f"crisp/{room}" for room in ROOMS}})
