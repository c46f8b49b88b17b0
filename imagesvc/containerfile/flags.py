"""Options of instructions: `--name=value` between the keyword and the rest, and the fields of RUN --mount."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final

from imagesvc.containerfile.errors import ContainerfileError, Place
from imagesvc.containerfile.instructions import RunMount
from imagesvc.containerfile.words import SPACE

TEXT, BOOL, MANY = "text", "bool", "many"
KNOWN: Final[Mapping[str, Mapping[str, str]]] = {
    "FROM": {"platform": TEXT},
    "RUN": {"mount": MANY, "network": TEXT, "security": TEXT},
    "COPY": {"from": TEXT, "chown": TEXT, "chmod": TEXT, "link": BOOL, "parents": BOOL, "exclude": MANY},
    "ADD": {
        "chown": TEXT,
        "chmod": TEXT,
        "link": BOOL,
        "exclude": MANY,
        "checksum": TEXT,
        "keep-git-dir": BOOL,
        "unpack": BOOL,
    },
    "HEALTHCHECK": {
        "interval": TEXT,
        "timeout": TEXT,
        "start-period": TEXT,
        "start-interval": TEXT,
        "retries": TEXT,
    },
}
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")
_TYPES: Final = ("bind", "cache", "tmpfs", "secret", "ssh")
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "bind": ("source", "target", "from", "readonly"),
    "cache": ("id", "source", "target", "from", "readonly", "sharing", "mode", "uid", "gid"),
    "tmpfs": ("target", "size", "readonly"),
    "secret": ("id", "source", "target", "env", "required", "mode", "uid", "gid"),
    "ssh": ("id", "target", "required", "mode", "uid", "gid"),
}
_OTHER_NAMES: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Flags:
    """The options that an instruction was given."""

    def __init__(self, at: Place, keyword: str) -> None:
        self._at = at
        self._keyword = keyword
        self._values: dict[str, list[str]] = {}

    def error(self, problem: str) -> ContainerfileError:
        """An error at the instruction."""
        return ContainerfileError(self._at, self._keyword, problem)

    def take(self, word: str) -> None:
        """Takes in one option; refuses unknown ones by name."""
        name, equals, value = word[2:].partition("=")
        known = KNOWN.get(self._keyword, {})
        kind = known.get(name)
        if kind is None:
            raise self.error(f"there is no option --{name}{suggestion(name, known, '--')}")
        if kind != MANY and name in self._values:
            raise self.error(f"--{name} stands there twice")
        if not equals and kind != BOOL:
            raise self.error(f"--{name} needs a value: --{name}=VALUE")
        self._values.setdefault(name, []).append(value if equals else "true")

    def text(self, name: str, default: str = "") -> str:
        """The value of an option."""
        return self._values.get(name, [default])[0]

    def many(self, name: str) -> tuple[str, ...]:
        """The values of an option that may be repeated."""
        return tuple(self._values.get(name, ()))

    def bool(self, name: str) -> bool | None:
        """None where it is not given."""
        return truth(self, f"--{name}", self.text(name)) if name in self._values else None


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What may have been meant, or what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there is {', '.join(prefix + other for other in names)}" if names else ": this instruction has none"


def truth(flags: Flags, name: str, value: str) -> bool:
    """Reads true or false."""
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise flags.error(f"{name} is to be true or false, and is {value!r}")


def split_flags(text: str, flags: Flags, escape: str) -> str:
    """Takes the options from the beginning of a text, and returns the rest of it. `--` alone ends them."""
    at = 0
    while True:
        while at < len(text) and text[at] in SPACE:
            at += 1
        if not text.startswith("--", at):
            return text[at:]
        word, at = _word(text, at, escape)
        if word == "--":
            return text[at:].lstrip(SPACE)
        flags.take(word)


def _word(text: str, at: int, escape: str) -> tuple[str, int]:
    """A word without its quotes and escapes, and where it ends."""
    out, quote = [], ""
    while at < len(text):
        character = text[at]
        if character == escape and quote != "'" and at + 1 < len(text):
            at += 1
            # What is before a variable stays for expansion.
            out.append(text[at] if text[at] != "$" else escape + "$")
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif not quote and character in SPACE:
            break
        else:
            out.append(character)
        at += 1
    return "".join(out), at


def parse_mount(flags: Flags, text: str) -> RunMount:
    """The value of --mount: fields with commas between them, as a line of CSV."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise flags.error(f"--mount={text}: {error}") from None
    if len(rows) != 1:
        raise flags.error("--mount is to have fields like type=cache,target=/directory")
    fields: dict[str, str] = {}
    for field in rows[0]:
        key, equals, value = field.partition("=")
        key = _OTHER_NAMES.get(key.strip().lower(), key.strip().lower())
        if not equals:
            if key not in ("readonly", "readwrite", "required"):
                raise flags.error(f"--mount: {field!r} is to be name=value")
            value = "true"
        if key == "readwrite":
            key, value = "readonly", str(not truth(flags, "readwrite", value)).lower()
        fields[key] = value
    kind = fields.pop("type", "bind").lower()
    if kind not in _TYPES:
        raise flags.error(f"--mount: there is no type {kind!r}{suggestion(kind, _TYPES)}")
    for key in fields:
        if key not in _FIELDS[kind]:
            raise flags.error(f"--mount: a {kind} mount has no field {key!r}{suggestion(key, _FIELDS[kind])}")
    return _mount(flags, kind, fields)


def _mount(flags: Flags, kind: str, fields: dict[str, str]) -> RunMount:
    from_ = fields.get("from", "")
    if "$" in from_:
        raise flags.error(f"--mount: from={from_} cannot have a variable: name a stage FROM the image, and that stage here")
    source, name = fields.get("source", ""), fields.get("id", "")
    if kind == "secret":
        if source and name:
            raise flags.error("--mount: source and id are two names for the secret: give one")
        source, name = "", source or name
        if not (name or fields.get("target")):
            raise flags.error("--mount: a secret needs its id")
    elif kind != "ssh" and not fields.get("target"):
        raise flags.error(f"--mount: a {kind} mount needs its target, a directory of the container")
    sharing = fields.get("sharing", "shared").lower()
    if sharing not in ("shared", "private", "locked"):
        raise flags.error(f"--mount: sharing is to be shared, private or locked, and is {sharing!r}")
    return RunMount(
        type=kind,
        source=source,
        target=fields.get("target", ""),
        from_=from_,
        readonly=truth(flags, "readonly", fields.get("readonly", str(kind == "bind"))),
        id=name,
        sharing=sharing,
        required=truth(flags, "required", fields.get("required", "false")),
        env=fields.get("env", ""),
        mode=_octal(flags, fields["mode"]) if "mode" in fields else None,
        uid=_id(flags, "uid", fields.get("uid", "0")),
        gid=_id(flags, "gid", fields.get("gid", "0")),
        size=_size(flags, fields["size"]) if "size" in fields else 0,
    )


def _octal(flags: Flags, text: str) -> int:
    if not re.fullmatch("[0-7]{1,5}", text):
        raise flags.error(f"--mount: mode is to be octal, like 0755, and is {text!r}")
    return int(text, 8) & 0o7777


def _id(flags: Flags, name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > (1 << 32) - 2:
        raise flags.error(f"--mount: {name} is to be a number, and is {text!r}")
    return int(text)


def _size(flags: Flags, text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})(?:([kmgt]?)(?:i?b)?)", text.strip().lower())
    if match is None:
        raise flags.error(f"--mount: size is to be like 64m or 1g, and is {text!r}")
    return int(match[1]) * _UNITS[match[2]]
