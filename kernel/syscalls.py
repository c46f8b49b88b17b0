"""System calls that Python's standard library lacks, one thin function each.

Performance contract: importing this module costs one `dlopen(NULL)` and no other import than ctypes, errno and os,
for it is preloaded by the fork server and shared by every shim. Each function is one system call; a failure is an
`OSError` made by `oserror`, which names the call and the path and explains what a bare ENOSYS or EPERM would not.

Paths are `str` or `bytes` and are passed as file-system bytes. File descriptors that are returned are close-on-exec.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

# --- constants, from <linux/mount.h>, <linux/sched.h>, <linux/prctl.h>, <linux/openat2.h> ---------------------------

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 0x20, 0x1000, 0x2000, 0x4000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x20000, 0x40000, 0x80000, 0x100000
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_PDEATHSIG, PR_SET_NAME, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_TIMERSLACK = 1, 15, 23, 24, 29
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 36, 38, 4
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_IDMAP = 0x100000

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x1, 0x2, 0x4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x8, 0x10

M_MMAP_THRESHOLD = -3  # <malloc.h>

# Numbers of the calls that glibc wraps late or never. Those from 424 on are the same on every architecture.
_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 428, 429, 430, 431, 432
_NR_OPENAT2, _NR_MOUNT_SETATTR = 437, 442
_NR_QUOTACTL_FD = 443
_NR_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "s390x": 282, "ppc64le": 273}
_NR_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "s390x": 345, "ppc64le": 355}
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "s390x": 217, "ppc64le": 203}

Path = str | bytes


class OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class CapHeader(ctypes.Structure):
    """`struct __user_cap_header_struct` of capset(2)."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class CapData(ctypes.Structure):
    """`struct __user_cap_data_struct`: 32 capabilities; version 3 takes two of them."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_int, _long, _ulong, _str, _ptr = (
    ctypes.c_int,
    ctypes.c_long,
    ctypes.c_ulong,
    ctypes.c_char_p,
    ctypes.c_void_p,
)
_libc.mount.argtypes = (_str, _str, _str, _ulong, _str)
_libc.umount2.argtypes = (_str, _int)
_libc.unshare.argtypes = (_int,)
_libc.setns.argtypes = (_int, _int)
_libc.prctl.argtypes = (_int, _ulong, _ulong, _ulong, _ulong)
_libc.capset.argtypes = (_ptr, _ptr)
_libc.capget.argtypes = (_ptr, _ptr)
_libc.mallopt.argtypes = (_int, _int)
_libc.syncfs.argtypes = (_int,)
_libc.getdents64.argtypes = (_int, _ptr, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.syscall.restype = _long  # variadic: every argument is converted by the functions below

_WHY = {
    errno.ENOSYS: "this kernel does not have the call",
    errno.EPERM: "not permitted: a capability, a namespace's owner or a security module forbids it",
}


def oserror(syscall: str, path: Path = b"") -> OSError:
    """The OSError of the call that just failed, with the call's name and the path in its message."""
    code = ctypes.get_errno()
    why = _WHY.get(code, os.strerror(code))
    return OSError(code, f"{syscall}: {why}", os.fsdecode(path)) if path else OSError(code, f"{syscall}: {why}")


def mount(source: Path, target: Path, fstype: Path = b"", flags: int = 0, data: Path = b"") -> None:
    """mount(2); `data` may be at most one page."""
    args = (os.fsencode(source), os.fsencode(target), os.fsencode(fstype), flags, os.fsencode(data) or None)
    if _libc.mount(*args) < 0:
        raise oserror("mount", target)


def umount2(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        raise oserror("umount2", target)


def unshare(flags: int) -> None:
    """unshare(2): move the calling process into new namespaces."""
    if _libc.unshare(flags) < 0:
        raise oserror("unshare")


def setns(fd: int, kind: int = 0) -> None:
    """setns(2): join the namespace that `fd` refers to."""
    if _libc.setns(fd, kind) < 0:
        raise oserror("setns")


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2)."""
    number = _NR_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "pivot_root: its number is not known for this architecture")
    if _libc.syscall(_long(number), _str(os.fsencode(new_root)), _str(os.fsencode(put_old))) < 0:
        raise oserror("pivot_root", new_root)


def prctl(option: int, value: int = 0, arg3: int = 0) -> int:
    """prctl(2) for options with integer arguments."""
    result: int = _libc.prctl(option, value, arg3, 0, 0)
    if result < 0:
        raise oserror(f"prctl({option})")
    return result


def reset_io_priority() -> None:
    """Let this thread's I/O priority follow from its nice value, as the kernel has it for a new process."""
    set_io_priority(0, 0)  # IOPRIO_CLASS_NONE


def set_io_priority(thread: int, value: int) -> None:
    """ioprio_set(2) of one thread, 0 is the caller: `value` is the class in the bits from 13 on, and the priority in it."""
    number = _NR_IOPRIO_SET.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "ioprio_set: its number is not known for this architecture")
    if _libc.syscall(_long(number), _int(1), _int(thread), _int(value)) < 0:  # IOPRIO_WHO_PROCESS
        raise oserror("ioprio_set")


class SchedAttr(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2), as of its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def sched_setattr(thread: int, attributes: SchedAttr) -> None:
    """sched_setattr(2) of one thread, 0 is the caller."""
    number = _NR_SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "sched_setattr: its number is not known for this architecture")
    attributes.size = ctypes.sizeof(SchedAttr)
    if _libc.syscall(_long(number), _int(thread), ctypes.byref(attributes), ctypes.c_uint(0)) < 0:
        raise oserror("sched_setattr")


def set_process_name(name: bytes) -> None:
    """Set the command name that `ps` and /proc/PID/comm show; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name)
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def drop_all_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets of the calling process (capset(2), version 3)."""
    header = CapHeader(0x20080522, 0)
    if _libc.capset(ctypes.byref(header), (CapData * 2)()) < 0:
        raise oserror("capset")


def limit_capabilities(mask: int) -> None:
    """Keep only the effective and permitted capabilities in `mask`; nothing is inheritable (capset(2), version 3)."""
    header, sets = CapHeader(0x20080522, 0), (CapData * 2)()
    if _libc.capget(ctypes.byref(header), sets) < 0:
        raise oserror("capget")
    for index, data in enumerate(sets):
        kept = mask >> 32 * index & 0xFFFFFFFF
        data.effective &= kept
        data.permitted &= kept
        data.inheritable = 0
    if _libc.capset(ctypes.byref(header), sets) < 0:
        raise oserror("capset")


def fix_malloc_threshold(size: int) -> None:
    """Give allocations of `size` bytes and more back to the kernel when freed, and never adapt that limit."""
    _libc.mallopt(M_MMAP_THRESHOLD, size)


def open_tree(path: Path, flags: int, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2): an fd for a mount, or with OPEN_TREE_CLONE for a detached copy of it."""
    encoded = os.fsencode(path)
    fd: int = _libc.syscall(_long(_NR_OPEN_TREE), _int(dir_fd), _str(encoded), ctypes.c_uint(flags))
    if fd < 0:
        raise oserror("open_tree", path)
    return fd


def move_mount(fd: int, target: Path) -> None:
    """move_mount(2): attach the detached mount `fd` at `target`."""
    args = (
        _int(fd),
        _str(b""),
        _int(AT_FDCWD),
        _str(os.fsencode(target)),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )
    if _libc.syscall(_long(_NR_MOVE_MOUNT), *args) < 0:
        raise oserror("move_mount", target)


def mount_setattr(fd: int, attr_set: int = 0, propagation: int = 0, userns_fd: int = 0, recursive: bool = False) -> None:
    """mount_setattr(2) on the mount that `fd` refers to."""
    attr = MountAttr(attr_set, 0, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    args = (
        _int(fd),
        _str(b""),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    if _libc.syscall(_long(_NR_MOUNT_SETATTR), *args) < 0:
        raise oserror("mount_setattr")


def fsopen(fstype: bytes) -> int:
    """fsopen(2): a configuration context of a file system."""
    fd: int = _libc.syscall(_long(_NR_FSOPEN), _str(fstype), ctypes.c_uint(FSOPEN_CLOEXEC))
    if fd < 0:
        raise oserror("fsopen", fstype)
    return fd


def fsconfig(fd: int, command: int, key: bytes | None = None, value: Path | None = None) -> None:
    """fsconfig(2); the kernel's own words about a refusal can be read from `fd`."""
    encoded = None if value is None else os.fsencode(value)
    args = (_int(fd), ctypes.c_uint(command), _str(key), _str(encoded), _int(0))
    if _libc.syscall(_long(_NR_FSCONFIG), *args) < 0:
        raise oserror("fsconfig", key or b"")


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of the file system configured in `fd`."""
    args = (_int(fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))
    mount_fd: int = _libc.syscall(_long(_NR_FSMOUNT), *args)
    if mount_fd < 0:
        raise oserror("fsmount")
    return mount_fd


def openat2(dir_fd: int, path: Path, flags: int, resolve: int = 0, mode: int = 0) -> int:
    """openat2(2): open `path` below `dir_fd` under the RESOLVE_* rules."""
    how = OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    args = (_int(dir_fd), _str(os.fsencode(path)), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    fd: int = _libc.syscall(_long(_NR_OPENAT2), *args)
    if fd < 0:
        raise oserror("openat2", path)
    return fd


def getsockopt(fd: int, level: int, option: int, block: bytearray) -> None:
    """getsockopt(2) of an option that reads what is in `block` before it fills it."""
    length = ctypes.c_uint(len(block))
    area = (ctypes.c_char * len(block)).from_buffer(block)
    if _libc.getsockopt(_int(fd), _int(level), _int(option), area, ctypes.byref(length)) < 0:
        raise oserror("getsockopt")


def quotactl_fd(fd: int, command: int, identity: int, block: bytearray) -> None:
    """quotactl_fd(2), Linux 5.14: a quota command on the file system that `fd` lies on; `block` is read and written."""
    address = (ctypes.c_char * len(block)).from_buffer(block)
    args = (ctypes.c_uint(fd), ctypes.c_uint(command), ctypes.c_uint(identity), ctypes.byref(address))
    if _libc.syscall(_long(_NR_QUOTACTL_FD), *args) < 0:
        raise oserror("quotactl_fd", str(identity))


def syncfs(fd: int) -> None:
    """syncfs(2): write back the file system of `fd`; write errors since `fd` was opened or last synced are told."""
    if _libc.syncfs(fd) < 0:
        raise oserror("syncfs")


_DIRENT = struct.Struct("=QqHB")  # struct linux_dirent64: d_ino, d_off, d_reclen, d_type, then the name


def directory_entries(fd: int, cookie: int) -> Iterator[tuple[bytes, int]]:
    """getdents64(2): names but `.` and `..`, each with the cookie (`d_off`) at which a later call goes on behind it."""
    os.lseek(fd, cookie, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(1 << 15)
    while True:
        length = _libc.getdents64(fd, buffer, len(buffer))
        if length < 0:
            raise oserror("getdents64")
        if not length:
            return
        data = buffer.raw[:length]
        position = 0
        while position < length:
            _inode, cookie, size, _kind = _DIRENT.unpack_from(data, position)
            name = data[position + _DIRENT.size : position + size].partition(b"\0")[0]
            position += size
            if name not in (b".", b".."):
                yield name, cookie
