from __future__ import annotations

from typing import Any

import pytest

from proto.errors import Code, CrispError
from runtime.streaming.config import StreamingConfig


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"address": "localhost"}, "address"),
        ({"port": 70000}, "port"),
        ({"tls_key": "/x"}, "tls_certificate and tls_key"),
        ({"idle_timeout_seconds": 0.0}, "idle_timeout_seconds"),
    ],
)
def test_bad_values_name_their_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(CrispError, match=key) as caught:
        StreamingConfig(**values)
    assert caught.value.code is Code.INVALID_ARGUMENT
