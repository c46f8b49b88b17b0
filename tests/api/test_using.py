"""docs/using.md as it stands: each of its lines is typed, and what it shows is what comes out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import PATIENCE

pytestmark = pytest.mark.root


def lines() -> list[tuple[str, list[str]]]:
    """What is typed, and what is shown below it."""
    typed: list[tuple[str, list[str]]] = []
    for line in (ROOT / "docs" / "using.md").read_text().splitlines():
        if line.startswith("    $ "):
            typed.append((line.removeprefix("    $ "), []))
        elif line.startswith("    "):
            typed[-1][1].append(line.removeprefix("    "))
    return typed


def pattern(shown: list[str]) -> str:
    """`…` is anything, a blank any number of them."""
    pieces = [re.sub(r"(\\ )+", r"\\s+", re.escape(line)).replace("…", ".*") for line in shown]
    return "".join(rf"\s*{piece}\s*\n" for piece in pieces)


def test_the_tour(kubelet: Kubelet, rootfs: Path, tmp_path: Path) -> None:
    name = "docker.io/library/busybox:latest"
    assert kubelet.client.admin.AddRootfs(admin.AddRootfsRequest(name=name, directory=str(rootfs))).image_id
    crisp = tmp_path / "crisp"
    crisp.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "crisp.py"} "$@"\n')
    crisp.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CRISP_SOCKET": kubelet.daemon.socket}
    typed = lines()
    assert len(typed) > 30
    for line, shown in typed:
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=60 * PATIENCE,
        )
        assert re.fullmatch(pattern(shown), done.stdout), (line, done.stdout)
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))
