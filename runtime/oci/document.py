"""An OCI configuration or process object as the bytes that an OCI runtime reads.

JSON is UTF-8, and what requests and images say is any bytes. What is not UTF-8 (a byte of a variable, half of a surrogate
pair in an image's configuration) becomes U+FFFD, as in containerd. The document holds secrets: no error quotes it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from proto import oci_annotations
from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def encode(document: dict[str, Any]) -> bytes:
    """JSON. INVALID_ARGUMENT names the place of a text with a zero byte, which the kernel would take for its end."""
    text = json.dumps(document, ensure_ascii=False)
    if _NUL.search(text):
        raise invalid(f"{next(_places(document, ''), 'the configuration')} holds a zero byte")
    return _SURROGATES.sub("\ufffd", text).encode()


def shown(data: bytes) -> dict[str, Any]:
    """A container's config.json as others see it: without what crisp tells crun of the filter that its rules describe.

    ValueError if it is none.
    """
    document: dict[str, Any] = json.loads(data)
    document.get("annotations", {}).pop(oci_annotations.FILTER, None)
    return document


def _places(value: Any, place: str) -> Iterator[str]:
    """Where zero bytes are: keys and indexes, and of a variable its name; never what stands there."""
    if isinstance(value, str) and "\0" in value:
        yield f"{place} ({value.partition('=')[0].partition(chr(0))[0]})" if place.startswith("process.env") else place
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(inner, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from [f"a key of {place}"] if "\0" in key else _places(inner, f"{place}.{key}".lstrip("."))
