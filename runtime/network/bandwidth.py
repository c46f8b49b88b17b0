"""The pod annotations kubernetes.io/ingress-bandwidth and kubernetes.io/egress-bandwidth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from proto.errors import invalid

INGRESS: Final = "kubernetes.io/ingress-bandwidth"
EGRESS: Final = "kubernetes.io/egress-bandwidth"

MIN_BITS: Final = 1_000
MAX_BITS: Final = 10**15
"""Bits per second; the range that the kubelet documents and its CNI users enforce."""

BURST_SECONDS: Final = 0.01
MIN_BURST: Final = 128 * 1024
"""Bytes; two of the largest packets that offloading makes, or they would be split one by one."""

QUEUE_SECONDS: Final = 0.025
"""How long a packet may wait for its turn before packets are dropped."""

# k8s.io/apimachinery resource.Quantity: a decimal number with a binary suffix, a decimal suffix or an
# exponent.
_QUANTITY = re.compile(r"\+?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


@dataclass(frozen=True, slots=True)
class Shape:
    """Parameters of a token bucket."""

    rate: int
    """Bytes per second."""

    @property
    def burst(self) -> int:
        """Bytes that may pass at once."""
        return max(MIN_BURST, int(self.rate * BURST_SECONDS))

    @property
    def queue(self) -> int:
        """Bytes that may wait."""
        return self.burst + int(self.rate * QUEUE_SECONDS)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A pod's limits as the pod sees them: ingress is what it receives. None: unlimited."""

    ingress: Shape | None
    egress: Shape | None


def bandwidth_of(annotations: Mapping[str, str]) -> Bandwidth:
    """A pod's limits. Raises INVALID_ARGUMENT naming the annotation."""
    return Bandwidth(_shape(annotations, INGRESS), _shape(annotations, EGRESS))


def _shape(annotations: Mapping[str, str], key: str) -> Shape | None:
    value = annotations.get(key)
    if value is None:
        return None
    bits = _bits(value)
    if bits is None:
        raise invalid(f'annotation {key}: "{value}" is not a quantity of bits per second, such as 10M')
    if not MIN_BITS <= bits <= MAX_BITS:
        raise invalid(f"annotation {key}: {value} is not between 1k and 1P bits per second")
    return Shape(rate=bits // 8)


def _bits(value: str) -> int | None:
    match = _QUANTITY.fullmatch(value)
    if match is None or len(value) > 32:
        return None
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix in _BINARY:
        return int(number * _BINARY[suffix])
    if suffix in _DECIMAL:
        return int(number.scaleb(_DECIMAL[suffix]))
    exponent = int(suffix[1:])
    return int(number.scaleb(exponent)) if abs(exponent) <= 30 else None
