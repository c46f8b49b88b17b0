"""All tests run in a network namespace of their own, which goes with the test process: no bridge, rule or sysctl of theirs
reaches the machine, and a registry on loopback meets nobody else's port.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import hypothesis
import pytest

from kernel import syscalls

# A slow or busy machine is no reason for a property test to fail.
hypothesis.settings.register_profile("crisp", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("crisp")

SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x41


def pytest_configure(config: pytest.Config) -> None:
    """Enter the namespace before any thread or child is there."""
    if os.geteuid() == 0:
        _enter_new_network()


def _enter_new_network() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    with socket.socket() as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP_RUNNING))


@pytest.fixture
def own_network() -> Iterator[None]:
    """A network namespace of one test's own: other tests' daemons leave bridges and routes in the common one."""
    if os.geteuid() != 0:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter_new_network()
        yield
    finally:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
        os.close(home)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so when they cannot run; the continuous integration has root and skips nothing."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)
