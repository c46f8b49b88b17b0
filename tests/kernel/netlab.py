"""Hosts as network namespaces, held open by a file descriptor and gone with it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

from runtime.network.netns import run_in_netns

CLONE_NEWNET = 0x40000000
SECONDS = 10.0
"""After which traffic that should have arrived has not."""


class Netns:
    """A network namespace with its loopback up."""

    def __init__(self) -> None:
        fds: list[int] = []

        def thread() -> None:
            assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0
            fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        worker = threading.Thread(target=thread)
        worker.start()
        worker.join()
        [self.fd] = fds
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.sh("ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0")

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, work: Callable[[], Any]) -> Any:
        return run_in_netns(self.fd, work)

    def sh(self, command: str) -> str:
        def work() -> str:
            done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            return done.stdout

        return self.run(work)

    def socket(self, family: int, kind: int) -> socket.socket:
        made = self.run(lambda: socket.socket(family, kind))
        made.settimeout(SECONDS)
        return made


def cable(a: Netns, b: Netns, name: str = "uplink") -> None:
    """Join two namespaces by a veth pair of the same name in both."""
    a.sh(f"ip link add {name} type veth peer name {name} netns {b.path}")
    for netns in (a, b):
        netns.sh(f"ip link set {name} up")


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Echo:
    """A TCP or UDP server in a namespace that answers with the address it saw."""

    def __init__(self, netns: Netns, port: int, *, kind: int = socket.SOCK_STREAM, bind: str = "::") -> None:
        self._socket = netns.socket(family_of(bind), kind)
        if bind == "::":
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((bind, port))
        self._kind = kind
        if kind == socket.SOCK_STREAM:
            self._socket.listen(64)
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                if self._kind == socket.SOCK_STREAM:
                    connection, peer = self._socket.accept()
                    with connection:
                        connection.sendall(peer[0].encode())
                else:
                    data, peer = self._socket.recvfrom(64)
                    if not data:  # shut down
                        return
                    self._socket.sendto(peer[0].encode(), peer)
            except OSError:
                return

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._socket.close)
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(netns: Netns, address: str, port: int, *, kind: int = socket.SOCK_STREAM, seconds: float = SECONDS) -> str:
    """Connect from a namespace to an Echo; returns the address that the server saw."""
    with netns.socket(family_of(address), kind) as connection:
        connection.settimeout(seconds)
        connection.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            connection.send(b"?")
        return connection.recv(64).decode().removeprefix("::ffff:")
