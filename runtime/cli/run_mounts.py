"""What `crisp run` mounts: directories of this node, and file systems in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from runtime.cli.output import fail

if TYPE_CHECKING:
    from proto import api_pb2 as cri

_COMMON: Final = ("type", "target", "destination", "dst", "readonly", "ro")
_WORDS: Final = {"bind": ("source", "src", "bind-propagation"), "tmpfs": ("tmpfs-size", "tmpfs-mode")}
_PROPAGATIONS: Final = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_YES: Final = ("", "true", "t", "1")
_NO: Final = ("false", "f", "0")


def binds(volumes: Iterable[str], mounts: Iterable[str]) -> Iterator[cri.Mount]:
    """What --volume and --mount type=bind say. Ends the command for what they cannot."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    for text in volumes:
        source, colon, rest = text.partition(":")
        target, _, words = rest.partition(":")
        if not colon or not source.startswith(("/", ".")):
            fail(f"--volume {text}: not of the form DIR:PLACE[:ro]; crisp keeps no volumes of its own", 2)
        given = set(words.split(",")) - {""}
        if given - {"ro", "rw", "z", "Z", "rprivate", "rslave", "rshared"}:
            fail(f"--volume {text}: {words} is not understood", 2)
        yield cri.Mount(
            host_path=os.path.realpath(source),
            container_path=target,
            readonly="ro" in given,
            selinux_relabel=bool(given & {"z", "Z"}),
            propagation=_propagation(given),
        )
    for text, named in _named(mounts):
        source, target = named.get("source") or named.get("src", ""), _target(text, named)
        if named["type"] == "tmpfs":
            continue
        if not source:
            fail(f"--mount {text}: it lacks a source", 2)
        if not os.path.exists(source):  # --volume makes it, as docker's does
            fail(f"--mount {text}: there is no {source}", 2)
        yield cri.Mount(
            host_path=os.path.realpath(source),
            container_path=target,
            readonly=_is_readonly(text, named),
            propagation=_propagation({named.get("bind-propagation", "")}),
        )


def _named(mounts: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each --mount, and its words by their names; each has a type."""
    for text in mounts:
        named = {"type": "bind", **dict(word.partition("=")[::2] for word in text.split(","))}
        if named["type"] not in _WORDS:
            fail(f"--mount {text}: type=bind and type=tmpfs are what there is", 2)
        known = (*_COMMON, *_WORDS[named["type"]])
        if unknown := [key for key in named if key not in known]:
            fail(f"--mount {text}: {unknown[0]!r} is not understood; known are {', '.join(known)}", 2)
        if named.get("bind-propagation", "private") not in _PROPAGATIONS:
            fail(f"--mount {text}: bind-propagation is one of {', '.join(_PROPAGATIONS)}", 2)
        if named["type"] == "tmpfs" and ":" in _target(text, named):
            fail(f"--mount {text}: the target of a tmpfs has no colon", 2)
        yield text, named


def _target(text: str, named: dict[str, str]) -> str:
    target = named.get("target") or named.get("destination") or named.get("dst", "")
    if not target:
        fail(f"--mount {text}: it lacks a target", 2)
    return target


def _is_readonly(text: str, named: dict[str, str]) -> bool:
    said = [named[key].lower() for key in ("readonly", "ro") if key in named]
    if wrong := set(said) - {*_YES, *_NO}:
        fail(f"--mount {text}: {wrong.pop()!r} is neither true nor false", 2)
    return any(word in _YES for word in said)


def _propagation(words: set[str]) -> cri.MountPropagation:
    from proto import api_pb2 as cri  # noqa: PLC0415

    if words & {"rshared", "shared"}:
        return cri.PROPAGATION_BIDIRECTIONAL
    return cri.PROPAGATION_HOST_TO_CONTAINER if words & {"rslave", "slave"} else cri.PROPAGATION_PRIVATE


def in_memory(tmpfs: Iterable[str], mounts: Iterable[str]) -> list[str]:
    """What --tmpfs and --mount type=tmpfs say, in the words of the first."""
    places = [*tmpfs, *(_tmpfs(text, named) for text, named in _named(mounts) if named["type"] == "tmpfs")]
    for text in places:
        if not text.startswith("/") or "\n" in text:
            fail(f"--tmpfs {text}: not of the form PLACE[:OPTION,…]", 2)
    return places


def _tmpfs(text: str, named: dict[str, str]) -> str:
    options = [f"{key}={named[f'tmpfs-{key}']}" for key in ("size", "mode") if f"tmpfs-{key}" in named]
    return f"{_target(text, named)}:{','.join([*options, *(['ro'] if _is_readonly(text, named) else [])])}"
