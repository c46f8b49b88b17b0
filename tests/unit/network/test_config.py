from __future__ import annotations

import pytest

from proto.errors import Code, CrispError
from runtime.network.config import NetworkConfig


def test_defaults_are_valid() -> None:
    assert [network.version for network in NetworkConfig().networks()] == [4, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bridge": "a-name-of-16-bytes"}, "bridge"),
        ({"bridge": 'x"; drop'}, "bridge"),
        ({"table": "a b"}, "table"),
        ({"subnets": ()}, "one IPv4 network"),
        ({"subnets": ("10.0.0.0/24", "10.1.0.0/24")}, "one IPv4 network"),
        ({"subnets": ("10.0.0.1/24",)}, "host bits"),
        ({"subnets": ("10.0.0.0/30",)}, "too small"),
        ({"subnets": ("fd00::/126",)}, "too small"),
        ({"direct": ("everywhere",)}, "direct"),
    ],
)
def test_bad_values_name_their_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(CrispError, match=message) as caught:
        NetworkConfig(**values)  # type: ignore[arg-type]
    assert caught.value.code is Code.INVALID_ARGUMENT
