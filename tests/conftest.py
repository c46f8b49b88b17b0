"""All tests run in a network namespace of their own, which goes with the test process: no bridge, rule or sysctl of theirs
reaches the machine, and a registry on loopback meets nobody else's port.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator

import hypothesis
import pytest

from kernel import syscalls
from tests.harness import pure_v2

# A slow or busy machine is no reason for a property test to fail.
hypothesis.settings.register_profile("crisp", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("crisp")

# Read when gRPC is loaded: it would start threads in children that tests fork, and mount namespaces take processes with one.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

REPORTED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
"""Signals whose disposition a parent may have changed; what Python itself sets (SIGPIPE ignored) stays."""
OPEN_FILES = 1024
"""As a login shell has it."""
SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x41


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cgroup-v2", action="store_true", help="run in pure cgroup v2, whatever the machine mounts")


def pytest_configure(config: pytest.Config) -> None:
    """Set what tests and their children inherit, and enter the namespaces before any thread or child is there."""
    _set_what_is_inherited()
    if config.getoption("--cgroup-v2"):
        if os.geteuid() != 0:
            pytest.exit("--cgroup-v2 needs root", returncode=0)
        if pure_v2.is_machine_pure():
            pytest.exit("this machine is pure cgroup v2: a run without --cgroup-v2 is the same", returncode=0)
        pure_v2.enter()
    if os.geteuid() == 0:
        _enter_new_network()


def _set_what_is_inherited() -> None:
    """The same under nohup, cron, systemd and in a terminal: tests send signals, compare modes and read messages."""
    for number, action in ((signal.SIGINT, signal.default_int_handler), *((n, signal.SIG_DFL) for n in REPORTED)):
        signal.signal(number, action)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for name in [name for name in os.environ if name.startswith(("LC_", "CRISP_FAILPOINT"))]:
        del os.environ[name]
    os.environ.update(LANG="C.UTF-8", TERM="xterm", COLUMNS="120")
    os.environ.pop("NO_COLOR", None)
    os.environ.pop("FORCE_COLOR", None)


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
    """Tests that cannot run here say why; the continuous integration has root and skips nothing for the lack of it."""
    skip = pytest.mark.skip(reason="needs root")
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(skip)
        needed = [name for marker in item.iter_markers("controllers") for name in marker.args]
        if missing := pure_v2.missing_controllers(*needed):
            reason = f"no cgroup controller {', '.join(missing)} in the mounted hierarchies"
            item.add_marker(pytest.mark.skip(reason=reason))
