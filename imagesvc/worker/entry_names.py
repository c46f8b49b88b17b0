"""Names of a layer's entries, as they count below the layer's root."""

from __future__ import annotations

from imagesvc.tar.header import TarError

WHITEOUT_META = b".wh..wh."
"""What AUFS' own names begin with."""


def normalise(name: bytes) -> bytes:
    """A name relative to the root: without leading `/`, without `./` and `x/../`. TarError where it leads out."""
    if not name or b"\0" in name:
        raise TarError("an entry has an empty name or one with a NUL")
    if name[0] != 0x2F and name[-1] != 0x2F and b"/." not in name and b"//" not in name and name[0] != 0x2E:
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise TarError(f"the name {shown(name)} has a `..` in it, which would lead out of the layer")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def in_metadata(raw_parent: bytes) -> bool:
    """Whether a path lies in one of AUFS' own directories (`.wh..wh.plnk`), which older Dockers left in layers."""
    return raw_parent.startswith(WHITEOUT_META) or b"/" + WHITEOUT_META in raw_parent


def shown(name: bytes) -> str:
    """A name for an error's text."""
    return repr(name.decode(errors="backslashreplace")[:200])
