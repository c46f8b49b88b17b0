"""`crisp build` as tests type it, and what an image that it has made holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proto import api_pb2 as cri
from tests.api.test_command import IMAGE, crisp
from tests.harness.kubelet import Kubelet

NAME = "localhost/built-app:1"


def context(directory: Path, containerfile: str, **files: str) -> Path:
    for name, text in {"Containerfile": containerfile, **files}.items():
        (directory / name).write_text(text.replace("BASE", IMAGE))
    return directory


def build(kubelet: Kubelet, *words: str, code: int = 0, **options: Any) -> tuple[str, str]:
    """What it prints, on both outputs."""
    done = crisp(kubelet, "build", *words, **options)
    assert done.returncode == code, done
    return done.stdout.decode(), done.stderr.decode()


def in_image(kubelet: Kubelet, image: str, *words: str) -> str:
    done = crisp(kubelet, "run", image, *words)
    assert done.returncode == 0, done
    return str(done.stdout.decode())


def document(kubelet: Kubelet, image: str) -> dict[str, Any]:
    reply = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=image), verbose=True))
    found: dict[str, Any] = json.loads(reply.info["info"])["imageSpec"]
    return found


def config(kubelet: Kubelet, image: str) -> dict[str, Any]:
    found: dict[str, Any] = document(kubelet, image)["config"]
    return found
