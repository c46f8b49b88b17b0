"""Running tests on a changed copy of the tree, so that nothing of a daemon that went wrong stays on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kernel import cgroups, mounts, namespaces, removal, syscalls
from tests.mutants.places import Place

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PASSED, NO_TESTS, TOO_LONG, BROKEN = 0, 5, 98, 99
SCRATCH = {"tmp": "/tmp", "netns": "/run/netns", "var-tmp": "/var/tmp"}
"""Directories that a trial has of its own: what it leaves in them goes with it."""


@dataclass
class Outcome:
    """`noticed` by a test (its id); None where all pass, as far as they came in the given time."""

    noticed: str | None
    seconds: float


class Copy:
    """A copy of the files of the tree that git knows, in which one place at a time is changed."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.root = directory / "tree"
        self._scratch = directory / "scratch"
        names = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=root, capture_output=True, check=True
        )
        for name in os.fsdecode(names.stdout).split("\0")[:-1]:
            if (root / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.root / name)

    def change(self, place: Place) -> str:
        """Make the change; returns what the file was."""
        path = self.root / place.file
        source = path.read_text()
        self.write(place, place.apply(source))
        return source

    def write(self, place: Place, source: str) -> None:
        """Write a module; its compiled form may be as old and as long, and still be another's."""
        path = self.root / place.file
        path.write_text(source)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()

    def run(self, tests: list[str], seconds: float) -> Outcome:
        """Run tests until the first fails, in a process that gathers all that they leave."""
        begin = time.monotonic()
        for name in SCRATCH:
            (self._scratch / name).mkdir(parents=True, exist_ok=True)
        os.chmod(self._scratch / "tmp", 0o1777)
        report = self._scratch / "report"
        keeper = os.fork()
        if not keeper:
            status = BROKEN
            try:
                with open(report, "wb") as output:
                    status = self._keep(tests, seconds, output)
            except OSError as error:
                print(error, file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        _, status = os.waitpid(keeper, 0)
        code = os.waitstatus_to_exitcode(status)
        text = report.read_text(errors="replace") if report.exists() else ""
        self._clean_up()
        assert code != BROKEN, f"the tests could not be started: {text}"
        return Outcome(None if code in (PASSED, NO_TESTS, TOO_LONG) else _failed(text), time.monotonic() - begin)

    def _keep(self, tests: list[str], seconds: float, report: BinaryIO) -> int:
        syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, lambda *_: (_end_descendants(), os._exit(BROKEN)))
        syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--make-rshared", "/"], check=True)
        os.makedirs(SCRATCH["netns"], exist_ok=True)
        for name, target in SCRATCH.items():
            subprocess.run(["mount", "--bind", str(self._scratch / name), target], check=True)
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--timeout=60", "-p", "no:cacheprovider", *tests]
        process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=report, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = TOO_LONG
        _end_descendants()
        return code

    def _clean_up(self) -> None:
        """Remove what outlives processes: cgroups, which are named like directories of the tests, and these directories."""
        hierarchies = cgroups.detect()
        for directory in (self._scratch / "var-tmp").glob("crisp-*"):
            _remove_group(hierarchies.group(directory.name))
        for pinned in (self._scratch / "netns").iterdir():
            namespaces.unpin(str(pinned))
        mounts.detach_all(str(self._scratch))
        removal.remove_tree(str(self._scratch))


def _remove_group(group: cgroups.Group) -> None:
    deadline = time.monotonic() + 10
    while not (group.kill() and group.remove()) and time.monotonic() < deadline:
        time.sleep(0.05)


def _failed(text: str) -> str:
    lines = [line.split(" ", 1)[1].split(" - ")[0] for line in text.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0] if lines else text[-200:]


def _end_descendants() -> None:
    """End all that this process is the ancestor of: whose parent ends becomes its child."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            children.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]
