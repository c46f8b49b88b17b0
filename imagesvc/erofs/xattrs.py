"""Extended attributes in an EROFS image, and the rules by which Linux would take them from setxattr(2).

Behind an inode: a header of 12 bytes (name filter, unused; count of shared attributes; then 4 bytes for each of these), and
the inode's own attributes: length of the name, index of its prefix, length of the value, name, value, up to 4 bytes.
`i_xattr_icount` counts the 4-byte words, the header as one.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence

_HEADER = struct.Struct("<IB7x")
_ENTRY = struct.Struct("<BBH")
_SHARED = struct.Struct("<I")
_USER, _ACCESS, _DEFAULT, _TRUSTED, _SECURITY = 1, 2, 3, 4, 6
_PREFIXES = ((b"user.", _USER), (b"trusted.", _TRUSTED), (b"security.", _SECURITY))
ACL_ACCESS, ACL_DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_WHOLE_NAMES = {ACL_ACCESS: _ACCESS, ACL_DEFAULT: _DEFAULT}
_NAME_MAX = 255
_VALUE_MAX = 65535
"""The kernel's XATTR_SIZE_MAX is one more, which the field for it does not hold."""
_LIST_MAX = 65536
_WORDS_MAX = 65535
SHARED_MAX = 255

_CAPABILITY = b"security.capability"
_CAPABILITY_SIZES = {0x02000000: 20, 0x03000000: 24}
_ACL_VERSION = struct.pack("<I", 2)
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _ACL_USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def accept(mode: int, given: Mapping[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
    """The attributes that a file with this type and mode can have, and the mode that its access list makes of it.

    What a file system without these attributes would not take is left out, as when a layer is unpacked into a directory.

    Raises:
        OSError: what setxattr(2) says to a name or a value that is wrong; `filename` is the attribute's name.
    """
    kept = {}
    for name, value in given.items():
        if not 0 < len(name) <= _NAME_MAX:
            raise _error(errno.ERANGE, name)
        if name in _WHOLE_NAMES:
            mode, keep = _accept_acl(mode, name, value)
            if keep:
                kept[name] = value
            continue
        index, rest = _split(name)
        if not index or (index == _USER and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))):
            continue
        if not rest or (name == _CAPABILITY and value and not _is_capability(value)):
            raise _error(errno.EINVAL, name)
        if len(value) > _VALUE_MAX:
            raise _error(errno.E2BIG, name)
        kept[name] = value
    if kept and (sum(len(name) + 1 for name in kept) > _LIST_MAX or _words(kept.items()) > _WORDS_MAX):
        raise _error(errno.ENOSPC, max(kept, key=lambda name: len(kept[name])))
    return mode, kept


def _error(number: int, name: bytes) -> OSError:
    return OSError(number, os.strerror(number), name)


def _split(name: bytes) -> tuple[int, bytes]:
    for prefix, index in _PREFIXES:
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    whole = _WHOLE_NAMES.get(name, 0)
    return whole, b""


def _is_capability(value: bytes) -> bool:
    """capability.h: struct vfs_ns_cap_data, revision 2 or 3."""
    revision = int.from_bytes(value[:4], "little") & 0xFF000000
    return len(value) == _CAPABILITY_SIZES.get(revision)


def _accept_acl(mode: int, name: bytes, value: bytes) -> tuple[int, bool]:
    """What set_posix_acl does: the mode's bits follow an access list, and one that says no more than them is not kept."""
    entries = _acl(name, value)
    if stat.S_ISLNK(mode):
        return mode, False
    if entries and name == ACL_DEFAULT and not stat.S_ISDIR(mode):
        raise _error(errno.EACCES, name)
    if entries and not _is_valid(entries):
        raise _error(errno.EINVAL, name)
    if name == ACL_DEFAULT:
        return mode, bool(entries)
    if not entries:
        return mode, False
    permissions = {tag: perm for tag, perm, _id in entries if tag not in (_ACL_USER, _GROUP)}
    group = permissions.get(_MASK, permissions[_GROUP_OBJ])
    mode = (mode & ~0o777) | permissions[_USER_OBJ] << 6 | group << 3 | permissions[_OTHER]
    return mode, len(entries) > 3


def _acl(name: bytes, value: bytes) -> list[tuple[int, int, int]]:
    """The entries of an access list, as posix_acl_from_xattr reads them."""
    if not value:
        return []
    if len(value) < len(_ACL_VERSION):
        raise _error(errno.EINVAL, name)
    if value[:4] != _ACL_VERSION:
        return []  # EOPNOTSUPP: as where a file system has no such lists
    if (len(value) - 4) % _ACL_ENTRY.size:
        raise _error(errno.EINVAL, name)
    entries = list(_ACL_ENTRY.iter_unpack(value[4:]))
    known = {tag for tag, _perm, _id in entries} <= {_USER_OBJ, _ACL_USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER}
    if not known or any(tag in (_ACL_USER, _GROUP) and identity == 0xFFFFFFFF for tag, _perm, identity in entries):
        raise _error(errno.EINVAL, name)
    return entries


def _is_valid(entries: list[tuple[int, int, int]]) -> bool:
    """posix_acl_valid: in order, each kind once but for users and groups with a name, which need a mask."""
    tags = [tag for tag, _perm, _id in entries]
    needs_mask = _ACL_USER in tags or _GROUP in tags
    singles = (_USER_OBJ, _GROUP_OBJ, _OTHER)
    return (
        tags == sorted(tags)
        and all(perm <= 7 for _tag, perm, _id in entries)
        and all(tags.count(tag) == 1 for tag in singles)
        and (tags.count(_MASK) == 1 if needs_mask else tags.count(_MASK) <= 1)
    )


def _entry(name: bytes, value: bytes) -> bytes:
    index, rest = _split(name)
    data = _ENTRY.pack(len(rest), index, len(value)) + rest + value
    return data + bytes(-len(data) % 4)


def _entry_size(name: bytes, value: bytes) -> int:
    return (_ENTRY.size + len(_split(name)[1]) + len(value) + 3) & ~3


def _words(items: Iterable[tuple[bytes, bytes]]) -> int:
    return 1 + sum(_entry_size(name, value) for name, value in items) // 4


def encode(kept: Mapping[bytes, bytes], shared: Sequence[int] = ()) -> bytes:
    """What stands behind an inode: nothing without attributes. `shared` are ids of those that stand elsewhere."""
    if not kept and not shared:
        return b""
    head = _HEADER.pack(0, len(shared)) + b"".join(_SHARED.pack(number) for number in shared)
    return head + b"".join(_entry(name, value) for name, value in kept.items())


def count(encoded: bytes) -> int:
    """`i_xattr_icount` for what `encode` has given."""
    return (len(encoded) - _HEADER.size) // 4 + 1 if encoded else 0


def size(words: int) -> int:
    """Bytes between an inode and what follows its attributes, of `i_xattr_icount`."""
    return _HEADER.size + (words - 1) * 4 if words else 0


def share(kept: Mapping[bytes, bytes], room: int) -> tuple[dict[bytes, bytes], list[tuple[int, bytes]], bytes]:
    """Attributes that need more than `room` bytes behind their inode: what stays there, and the shared area for the rest.

    Returns what stays, (offset in the area divided by 4, name) of the others, and the area. Raises ValueError if even so
    there is no room.
    """
    left = dict(sorted(kept.items(), key=lambda item: len(item[1])))
    others: list[tuple[int, bytes]] = []
    area = b""
    while left and len(encode(left)) + _SHARED.size * len(others) > room:
        name, value = left.popitem()
        others.append((len(area) // 4, name))
        area += _entry(name, value)
    if len(others) > SHARED_MAX:
        raise ValueError("the root directory has too many extended attributes")
    return left, others, area
