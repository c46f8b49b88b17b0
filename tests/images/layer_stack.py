"""Unpacking stacks of layers for tests: by the real job, in forked and chrooted children, and mounted with overlayfs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imagesvc.erofs import layer_file
from imagesvc.limits import Limits
from imagesvc.worker import jobs
from kernel import mounts, syscalls
from tests.harness import layer_files


def run_unpack(
    blob: bytes, target: Path, lower: list[Path] | None, limits: Limits | None = None, form: str = "directory"
) -> dict[str, Any]:
    """One unpack job in a child of its own; returns its answer."""
    if form == "directory":
        target.mkdir()
    file = target.with_suffix(".blob")
    file.write_bytes(blob)
    request = {
        "job": "unpack",
        "form": form,
        "patient": lower is None,
        "file": str(file),
        "offset": 0,
        "target": str(target),
        "lower": None if lower is None else [str(d) for d in lower],
        "limits": asdict(limits or Limits()),
    }
    return run_job(request, jobs.AVAILABLE.pack(len(blob), len(blob)))


def run_job(request: dict[str, Any], message: bytes = b"") -> dict[str, Any]:
    """Any job, in a forked child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        if message:
            ours.send(message)
        pid = os.fork()
        if not pid:
            try:
                theirs.send(json.dumps(jobs.run(request, theirs)).encode())
            finally:
                os._exit(0)
        theirs.close()
        answer: dict[str, Any] = {}
        while message := ours.recv(1 << 16):
            if len(message) != jobs.PROGRESS.size:
                answer = json.loads(message)
        os.waitpid(pid, 0)
    return answer


def unpack_stack(layers: list[bytes], base: Path, forms: Sequence[str] = ()) -> list[Path]:
    """Unpacks as a pull does: each layer alone, and those that depend on others again. `forms` says as what, for each layer.
    Lower directories and files, topmost first."""
    forms = forms or ["directory"] * len(layers)
    suffixes = [layer_file.SUFFIX if form == "erofs" else "" for form in forms]
    answers = [run_unpack(layer, base / f"{i}a{suffixes[i]}", None, form=forms[i]) for i, layer in enumerate(layers)]
    roots: list[Path] = []
    attributed = False
    for i, answer in enumerate(answers):
        directory = base / f"{i}a{suffixes[i]}"
        inherits = "ok" in answer and attributed
        if answer.get("ok", {}).get("waits"):
            limits = asdict(Limits())
            request = {"job": "complete", "target": str(directory), "lower": [str(r) for r in roots], "limits": limits}
            completed = run_job(request)
            if "error" in completed:
                raise UnpackFailed(completed["message"])
            answer = {"ok": answer["ok"] | completed["ok"]}  # noqa: PLW2901
        elif answer.get("error") == "needs_lower" or inherits:
            directory = base / f"{i}b{suffixes[i]}"
            answer = run_unpack(layers[i], directory, roots, form=forms[i])  # noqa: PLW2901
        if "error" in answer:
            raise UnpackFailed(answer["message"])
        if answer["ok"]["unsettled"]:
            settled = run_job({"job": "settle", "target": str(directory), "lower": [str(r) for r in roots]})
            assert settled == {"ok": {}}
        assert answer["ok"]["diff_id"] == "sha256:" + hashlib.sha256(layers[i]).hexdigest()
        attributed = attributed or answer["ok"]["attributed"]
        roots.insert(0, directory if forms[i] == "erofs" else directory / "fs")
    return roots


class UnpackFailed(Exception):
    pass


@contextmanager
def overlay(roots: list[Path], target: Path) -> Iterator[Path]:
    """A read-only overlay of directories and files, topmost first."""
    target.mkdir()
    empty = target.with_name(target.name + "-empty")
    empty.mkdir()
    with ExitStack() as stack:
        places = [stack.enter_context(place_of(root)) for root in roots]
        lower = ":".join(str(place) for place in [*places, empty])
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", target], check=True)
        stack.callback(subprocess.run, ["umount", target], check=True)
        yield target


def assert_sound(layer: Path) -> None:
    """What fsck.erofs says of a layer's image: nothing."""
    checked = subprocess.run(["fsck.erofs", layer], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), checked


@contextmanager
def place_of(layer: Path) -> Iterator[Path]:
    """Where a layer's tree is: a directory, or a mount of a file."""
    if layer.suffix != layer_file.SUFFIX:
        yield layer
        return
    layer_files.need(layer.parent)
    place = Path(tempfile.mkdtemp(prefix="crisp-layer-"))
    mount = mounts.erofs(str(layer))
    try:
        syscalls.move_mount(mount, place)
    finally:
        os.close(mount)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def describe(root: Path, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything below a directory: type, mode, owner, device, content or target, time of what is no directory, xattrs."""
    found: dict[bytes, tuple[Any, ...]] = {}
    top = os.fsencode(root)
    for parent, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                content = (os.major(status.st_rdev), os.minor(status.st_rdev))
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
            xattrs = {n: v for n, v in xattrs.items() if not n.startswith("trusted.overlay.")}
            mtime = status.st_mtime_ns if times and not stat.S_ISDIR(status.st_mode) else None
            found[os.path.relpath(path, top)] = (
                *(stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid),
                *(content, mtime, xattrs),
            )
    return found
