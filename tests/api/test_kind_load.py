"""`kind load` into a node that runs crisp: kind's own command lines, through manifests/kind/ctr."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet
from tests.images.image_builder import Layout, busybox

CTR = ROOT / "manifests" / "kind" / "ctr"


@pytest.mark.root
def test_kind_load(kubelet: Kubelet, tmp_path: Path) -> None:
    """The command lines of `kind load image-archive` and of `kind load docker-image` for an image that is there already."""
    layout = Layout(tmp_path / "layout")
    layout.image("v1", [busybox()], {"Entrypoint": ["/bin/true"]})
    archive = tmp_path / "app.tar"
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci:{layout.path}:v1", f"docker-archive:{archive}:registry.example/app:v1"], check=True
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    crisp = programs / "crisp"
    crisp.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/crisp.py "$@"\n')
    crisp.chmod(crisp.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "CRISP_SOCKET": kubelet.daemon.socket}

    def ctr(*arguments: str, stdin: bytes = b"") -> str:
        command = [CTR, "--namespace=k8s.io", *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout.decode()

    ctr("images", "import", "--all-platforms", "--digests", "--snapshotter=overlayfs", "-", stdin=archive.read_bytes())
    status = kubelet.images.ImageStatus(cri.ImageStatusRequest(image={"image": "registry.example/app:v1"}))
    ctr("images", "tag", "--force", status.image.id, "registry.example/app:v2")
    assert {"registry.example/app:v1", "registry.example/app:v2"} <= {*ctr("images", "list", "-q").split()}
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image={"image": status.image.id}))
