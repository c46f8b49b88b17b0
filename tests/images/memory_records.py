"""Image records in memory, for tests that need no database."""

from __future__ import annotations

import copy
from typing import Any


class MemoryRecords:
    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Any]] = {}

    def load(self) -> list[dict[str, Any]]:
        return copy.deepcopy(list(self.documents.values()))

    async def put(self, image_id: str, record: dict[str, Any]) -> None:
        self.documents[image_id] = copy.deepcopy(record)

    async def delete(self, image_id: str) -> None:
        self.documents.pop(image_id, None)
