"""What tests take of the host that they run on."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

CNI_PLUGINS = Path("/usr/lib/cni")
needs_cni_plugins = pytest.mark.skipif(
    not (CNI_PLUGINS / "bridge").exists(), reason="containernetworking-plugins is not installed"
)


def free_port() -> int:
    """A port of the loopback interface on which nobody listens; the tests have an interface of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def crictl() -> str | None:
    """The program, which `CRISP_CRICTL` names where it is not on the path."""
    return os.environ.get("CRISP_CRICTL") or shutil.which("crictl")
