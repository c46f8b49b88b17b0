"""Who a container's process is: an image's USER or a pod's runAsUser, resolved in the container's own /etc.

    user         uid                       gid                             needs an entry
    ""           0                         root's in /etc/passwd, else 0   no
    "1000"       1000                      that entry's, else 0            no
    "1000:50"    1000                      50                              no
    "www"        www's in /etc/passwd      that entry's                    in /etc/passwd
    "www:adm"    www's                     adm's in /etc/group             in both

A group given by the pod (runAsGroup) goes before all of these. Files are opened beneath the container's root
(openat2 RESOLVE_IN_ROOT), so that no symbolic link of an image leads to the host's. Supplemental groups: under the policy
`merge` those of the pod and those of which /etc/group makes the user a member; under `strict` the pod's alone
(KEP-3619). The primary group is always among them, or a process could drop it to pass a "deny this group" mode.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kernel import syscalls
from proto.errors import Code, CrispError

MAX_FILE = 16 << 20  # bytes; /etc/passwd of an image
MAX_DIGITS = 20  # of a number that is looked at; Python refuses to read some thousands
MAX_GROUPS = 4096  # of one process; the kernel takes 65536, and every message about the container has them all
MAX_FOUND = 1 << 16  # of groups that an image makes the user a member of; that they are too many is said by then
MAX_ID = (1 << 32) - 2  # the last id; the next means "no id"


class User(NamedTuple):
    """Ids of a process, as the container sees them."""

    uid: int
    gid: int
    groups: list[int]
    home: str
    """By /etc/passwd; `/` if that does not say, as runc has it."""


class Entry(NamedTuple):
    """A line of /etc/passwd: `group` is the primary gid. A line of /etc/group: `members`, with commas between them."""

    name: bytes
    number: int
    group: int
    members: bytes
    home: bytes = b""

    def has(self, member: bytes) -> bool:
        """Whether `member` is one of the members of a group."""
        return member in self.members and b",%b," % member in b",%b," % self.members


def parse_passwd(text: bytes) -> Iterator[Entry]:
    """`name:password:uid:gid:...` lines; malformed ones are skipped, as getpwnam does."""
    for line in _lines(text):
        fields = line.split(b":", 6)
        if len(fields) >= 4 and fields[0] and _is_id(fields[2]) and _is_id(fields[3]):
            home = fields[5] if len(fields) > 5 and b"\0" not in fields[5] else b""
            yield Entry(fields[0], int(fields[2]), int(fields[3]), b"", home)


def parse_group(text: bytes) -> Iterator[Entry]:
    """`name:password:gid:member,member` lines; malformed ones are skipped."""
    for line in _lines(text):
        fields = line.split(b":", 4)
        if len(fields) >= 3 and fields[0] and _is_id(fields[2]):
            yield Entry(fields[0], int(fields[2]), int(fields[2]), fields[3].strip() if len(fields) > 3 else b"")


def _lines(text: bytes) -> Iterator[bytes]:
    """One after the other: a list of the lines of a hostile file takes many times the memory of the file."""
    return (line.rstrip(b"\r\n") for line in io.BytesIO(text))


def _is_id(field: bytes) -> bool:
    return field.isdigit() and len(field) <= MAX_DIGITS and int(field) <= MAX_ID


def resolve(root_fd: int, user: str, group: int | None, supplemental: Sequence[int], policy: str = "merge") -> User:
    """Resolve `user` in the root file system open at `root_fd`; INVALID_ARGUMENT if a name has no entry."""
    user_name, separator, group_name = user.partition(":")
    passwd = parse_passwd(read_file(root_fd, "etc/passwd"))
    known = read_file(root_fd, "etc/group")
    entry: Entry | None
    number = parse_id(user_name, user) if user_name else 0
    if number is None:
        entry = find_name(passwd, user_name, user, "user", "/etc/passwd")
        number = entry.number
    else:
        entry = next((line for line in passwd if line.number == number), None)
    if group is not None:
        gid = group
    elif separator and group_name:
        named = parse_id(group_name, user)
        gid = find_name(parse_group(known), group_name, user, "group", "/etc/group").number if named is None else named
    else:
        gid = entry.group if entry is not None else 0
    extra: list[int] = list(supplemental)
    if policy == "merge" and entry is not None:
        extra += itertools.islice((line.number for line in parse_group(known) if line.has(entry.name)), MAX_FOUND)
    groups = sorted({gid, *extra})
    if len(groups) > MAX_GROUPS:
        raise CrispError(Code.INVALID_ARGUMENT, f"user {user!r} is in {len(groups)} groups, and can be in {MAX_GROUPS}")
    home = entry.home.decode(errors="replace") if entry is not None else ""
    return User(number, gid, groups, home or "/")


def parse_id(text: str, user: str) -> int | None:
    """A numeric id, None if `text` is a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > MAX_DIGITS or int(text) > MAX_ID:
        raise CrispError(Code.INVALID_ARGUMENT, f"user {user!r}: {text} is not a user or group id")
    return int(text)


def find_name(entries: Iterable[Entry], name: str, user: str, kind: str, path: str) -> Entry:
    """The first entry called `name`."""
    wanted = os.fsencode(name)
    for entry in entries:
        if entry.name == wanted:
            return entry
    message = f"user {user!r}: no {kind} {name!r} in {path} of the image"
    raise CrispError(Code.INVALID_ARGUMENT, message)


def read_file(root_fd: int, path: str) -> bytes:
    """A regular file of the image, its first MAX_FILE bytes; empty if there is none.

    Anything else is not even opened: to open the device node of a hostile image is to act on the host's device.
    """
    try:
        place = syscalls.openat2(root_fd, path, os.O_PATH, syscalls.RESOLVE_IN_ROOT)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise CrispError(Code.INVALID_ARGUMENT, f"/{path} of the image: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise CrispError(Code.INVALID_ARGUMENT, f"/{path} of the image is no regular file")
        with open(f"/proc/self/fd/{place}", "rb", buffering=0) as file:
            return file.read(MAX_FILE) or b""
    finally:
        os.close(place)
