"""Work inside another network namespace, each piece in a thread of its own (`own_thread.apart`)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from kernel import syscalls
from kernel.own_thread import apart
from proto.errors import Code, CrispError, invalid, not_found

T = TypeVar("T")


def run_in_netns(netns: int, work: Callable[[], T]) -> T:
    """Call `work` in a thread that has entered the namespace open as `netns`, and return its result.

    What it opens (sockets, files below /proc/sys/net) belongs to that namespace for good. Blocks until it is
    done.
    """

    def enter() -> T:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        return work()

    return apart(enter)


class Witness:
    """A thread that stays in a network namespace and does nothing there."""

    def __init__(self, netns_path: str) -> None:
        """Blocks until the thread is in it. Raises OSError, and NOT_FOUND if no namespace is pinned there."""
        self._leave = threading.Event()
        entered = threading.Event()
        failure: list[OSError] = []
        netns = open_netns(netns_path)

        def stay() -> None:
            try:
                syscalls.setns(netns, syscalls.CLONE_NEWNET)
            except OSError as error:
                failure.append(error)
                return
            finally:
                entered.set()
            self._leave.wait()

        try:
            self._thread = threading.Thread(target=stay, name="witness", daemon=True)
            self._thread.start()
            entered.wait()
        finally:
            os.close(netns)
        if failure:
            raise failure[0]
        self.tid = self._thread.native_id or 0

    def end(self) -> None:
        """Leave the namespace. Blocks until the thread has ended."""
        self._leave.set()
        self._thread.join()


def open_netns(path: str) -> int:
    """Open a pinned namespace; the caller closes the fd. Raises NOT_FOUND if nothing is pinned there."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENXIO):
            raise
        raise not_found(f"network namespace {path} does not exist") from None


def is_of_interface(sysctl: str) -> bool:
    """Whether a sysctl belongs to one interface, so that it exists from the pod's attachment on."""
    parts = sysctl.replace("/", ".").split(".", 4)
    return (
        len(parts) == 5
        and parts[0] == "net"
        and parts[1] in ("ipv4", "ipv6", "mpls")
        and parts[2] in ("conf", "neigh")
        and parts[3] not in ("all", "default", "lo")
    )


def set_sysctls_in_netns(netns_path: str, sysctls: Mapping[str, str]) -> None:
    """Set sysctls (net.x.y or net/x/y) of a network namespace. Blocks. Raises INVALID_ARGUMENT naming the one
    refused."""

    def work() -> None:
        for name, value in sysctls.items():
            path = f"/proc/sys/{name if '/' in name else name.replace('.', '/')}"
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write(value)
            except OSError as error:
                raise invalid(f"cannot set sysctl {name}={value} in the pod: {error.strerror}") from None

    netns = open_netns(netns_path)
    try:
        run_in_netns(netns, work)
    finally:
        os.close(netns)


async def dial_in_netns(netns_path: str | None, port: int, *, timeout: float = 10.0) -> socket.socket:
    """Connect to a TCP port on the loopback addresses of a network namespace, IPv4 first and then IPv6.

    `netns_path` None means the daemon's own. `timeout` is in seconds, for each family. The socket is
    nonblocking. Raises UNAVAILABLE with both answers when neither family connects.
    """
    refusals = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            return await _dial(netns_path, family, address, port, timeout)
        except TimeoutError:
            refusals.append(f"{address}: no answer in {timeout:g} s")
        except OSError as error:
            refusals.append(f"{address}: {os.strerror(error.errno) if error.errno else error}")
    raise CrispError(Code.UNAVAILABLE, f"cannot connect to port {port} in the pod: {'; '.join(refusals)}")


async def _dial(
    netns_path: str | None, family: socket.AddressFamily, address: str, port: int, timeout: float
) -> socket.socket:
    if netns_path is None:
        connection = _tcp_socket(family)
    else:
        connection = await asyncio.to_thread(_tcp_socket_in, netns_path, family)
    try:
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def _tcp_socket_in(netns_path: str, family: socket.AddressFamily) -> socket.socket:
    netns = open_netns(netns_path)
    try:
        return run_in_netns(netns, lambda: _tcp_socket(family))
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise not_found(f"{netns_path} is not a network namespace") from None
        raise
    finally:
        os.close(netns)


def _tcp_socket(family: socket.AddressFamily) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    return connection
