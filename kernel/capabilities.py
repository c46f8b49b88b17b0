"""Linux capabilities by name and number, and the set that this process may hand on."""

from __future__ import annotations

from kernel import syscalls

# capabilities(7), in the order of <linux/capability.h>: the index is the number.
NAMES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
    "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
    "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
NUMBERS: dict[str, int] = {name: number for number, name in enumerate(NAMES)}


def from_mask(mask: int) -> frozenset[str]:
    """The names in a mask as /proc/PID/status prints it; numbers newer than this table are left out."""
    return frozenset(name for number, name in enumerate(NAMES) if mask >> number & 1)


def to_mask(names: frozenset[str]) -> int:
    """The mask of `names`; a KeyError names one that does not exist."""
    return sum(1 << NUMBERS[name] for name in names)


def normal_name(name: str) -> str | None:
    """`net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are all CAP_NET_ADMIN; None if there is no such capability."""
    upper = name.upper()
    full = upper if upper.startswith("CAP_") else "CAP_" + upper
    return full if full in NUMBERS else None


def keep(names: frozenset[str]) -> None:
    """Give up, for this process and for what it executes, every capability but these, for good."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    for name in bounding_set() - names:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, NUMBERS[name])
    syscalls.limit_capabilities(to_mask(names))


def bounding_set() -> frozenset[str]:
    """What this process and its children can ever have; a container must not be promised more."""
    found = set()
    for number, name in enumerate(NAMES):
        try:
            if syscalls.prctl(syscalls.PR_CAPBSET_READ, number):
                found.add(name)
        except OSError:  # EINVAL: a number this kernel does not know, and so none after it
            break
    return frozenset(found)
