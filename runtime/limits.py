"""Every bound of the daemon, named, with its unit. Bounds of one wire format stand beside its codec."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024

GRPC_MESSAGE_BYTES: Final = 16 * MIB
"""The kubelet reads at most this much in one message."""

GRPC_OVERHEAD_BYTES: Final = 1024
"""Room in a message for what surrounds its one large field."""

EXEC_SYNC_BYTES: Final = 16 * MIB
"""What ExecSync keeps of each stream; the command keeps running and the rest is read and dropped."""

EXEC_DRAIN_SECONDS: Final = 1.0
"""How long ExecSync waits, after the exit, for a pipe that a grandchild holds open."""

BLOCKING_THREADS: Final = 8
"""Threads for system calls that can block."""

HOST_PATH_SECONDS: Final = 30.0
"""How long the helper may take to look at a path of the user's, which can lie on a dead NFS."""

RELABEL_SECONDS: Final = 100.0
"""How long the helper may take to give a volume an SELinux label; the kubelet waits two minutes for a create."""

SANDBOX_SECONDS: Final = 60.0
"""How long the making of a sandbox's namespaces may take."""

SHIM_OOM_SCORE_ADJ: Final = -999
"""Shims must be the last that the OOM killer takes."""

REMOVED_CONTAINERS: Final = 1000
"""Containers whose exit codes are remembered after their removal."""

KILL_SECONDS: Final = 10.0
"""How long SIGKILL may take to end a whole cgroup before the stop call reports what is stuck."""

KILL_AGAIN_SECONDS: Final = 2.0
"""How long it may take once more, when the daemon does what the shim has not done in KILL_SECONDS."""

SHIM_RETRY_SECONDS: Final = 1.0
"""Until a shim that lives and did not answer is asked again."""

SHUTDOWN_SECONDS: Final = 5.0
"""How long a daemon that was asked to end waits for calls that are under way."""
