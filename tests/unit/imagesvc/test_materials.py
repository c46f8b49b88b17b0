"""What an image is put together of again: what cannot be is refused, and says what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from imagesvc.store.images import LayerRef
from imagesvc.store.materials import Materials
from proto.errors import Code, CrispError


@pytest.mark.parametrize("directory", [None, SimpleNamespace(info=SimpleNamespace(skeleton=False))])
async def test_a_layer_without_a_skeleton(directory: Any) -> None:
    store = cast("Any", SimpleNamespace(has=lambda _digest: False))
    layers = cast("Any", SimpleNamespace(get=lambda _key: directory))
    materials = Materials(store, layers, cast("Any", None), "/nowhere")
    with pytest.raises(CrispError, match="pull its image with keep_blobs") as caught:
        await materials.layer(LayerRef("key", "sha256:" + "0" * 64, "sha256:" + "1" * 64, 1, "tar"))
    assert caught.value.code is Code.FAILED_PRECONDITION
