"""imagesvc's records, kept in the daemon's state.db."""

from __future__ import annotations

from typing import Any

from runtime.store.database import Store


class ImageRecords:
    """What imagesvc asks for; see imagesvc for the documents."""

    def __init__(self, store: Store) -> None:
        self._table = store.images

    def load(self) -> list[dict[str, Any]]:
        """All records."""
        return self._table.load()

    async def put(self, image_id: str, record: dict[str, Any]) -> None:
        """Store a record; on return it survives a power cut."""
        await self._table.put(image_id, record, durable=True)

    async def delete(self, image_id: str) -> None:
        """Forget a record."""
        await self._table.delete(image_id, durable=True)
