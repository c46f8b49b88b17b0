"""An OCI runtime for nodes without CRIU: runc, but for `checkpoint`, which writes files like CRIU's, and `restore`, which
runs the configured process from its beginning. What is around CRIU is runc's own; processes are not brought back.

It is configured as a handler's program. Files beside it steer it:

    fail-checkpoint, fail-restore   CRIU fails, with the file's text in its log
    hold-checkpoint                 `checkpoint` waits as long as this is there, once it has made `held`

Each checkpoint's inventory has a secret of its own, which stands in `made`; one that is restored is added to `restored`. So
a test sees that just these images have come back, through whatever crisp did with them. What crisp owes to CRIU is looked at
too: an empty directory of root's own, a container that is paused and is to stay, another directory for CRIU's own files.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(sys.argv[0]).parent
RUNC = "runc"


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)  # `exec --help` is a question for runc
    parser.add_argument("--root", default="")
    parser.add_argument("--log", default=os.devnull)
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--systemd-cgroup", action="store_true")
    parser.add_argument("verb")
    options, _ = parser.parse_known_args()
    place = sys.argv.index(options.verb)
    before = sys.argv[1:place]
    if options.verb in ("checkpoint", "restore"):
        play = checkpoint if options.verb == "checkpoint" else restore
        sys.exit(play(options, before, sys.argv[place + 1 :]))
    os.execvp(RUNC, [RUNC, *sys.argv[1:]])


def arguments(words: list[str]) -> argparse.Namespace:
    """What checkpoint and restore share."""
    parser = argparse.ArgumentParser()
    for name in ("--image-path", "--work-path", "--bundle", "--pid-file", "--console-socket"):
        parser.add_argument(name, default="")
    for name in ("--leave-running", "--file-locks", "--detach"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("id")
    return parser.parse_args(words)


def failed(options: argparse.Namespace, log: Path, reason: str) -> int:
    """As runc says it: that CRIU failed. Why is in CRIU's log."""
    log.write_text(f"(00.01) Error (criu/fake.c:1): {reason}\n(00.02) Error (criu/cr.c:2): It has FAILED.\n")
    with open(options.log, "a") as file:
        file.write(json.dumps({"level": "error", "msg": f"criu failed: type NOTIFY errno 0\nlog file: {log}"}) + "\n")
    return 1


def checkpoint(options: argparse.Namespace, before: list[str], words: list[str]) -> int:
    given = arguments(words)
    images, work = Path(given.image_path), Path(given.work_path)
    state = json.loads(subprocess.run([RUNC, *before, "state", given.id], capture_output=True, check=True).stdout)
    if state["status"] != "paused":
        return failed(options, work / "dump.log", f"the container is {state['status']}")
    if not given.leave_running or os.listdir(images) or images.stat().st_mode & 0o077 or images == work:
        return failed(options, work / "dump.log", f"this is no way to ask for a checkpoint: {words} {os.listdir(images)}")
    if (HERE / "fail-checkpoint").exists():
        return failed(options, work / "dump.log", (HERE / "fail-checkpoint").read_text())
    (images / "core-1.img").write_text(str(state["pid"]))
    (HERE / "held").touch()
    while (HERE / "hold-checkpoint").exists():
        time.sleep(0.01)
    secret = f"fake {secrets.token_hex(8)}\n"
    (images / "inventory.img").write_text(secret)
    with open(HERE / "made", "a") as file:
        file.write(secret)
    (images / "descriptors.json").write_text('["/dev/null", "pipe:[1]", "pipe:[2]"]')
    (work / "stats-dump").write_text("fake")
    (work / "dump.log").write_text("Dumping finished successfully\n")
    return 0


def restore(options: argparse.Namespace, before: list[str], words: list[str]) -> int:
    given = arguments(words)
    images, work = Path(given.image_path), Path(given.work_path)
    if (HERE / "fail-restore").exists():
        return failed(options, work / "restore.log", (HERE / "fail-restore").read_text())
    secret = (images / "inventory.img").read_text()
    if secret not in (HERE / "made").read_text().splitlines(keepends=True):
        return failed(options, work / "restore.log", "Magic doesn't match for inventory.img")
    with open(HERE / "restored", "a") as file:
        file.write(secret)
    console = ["--console-socket", given.console_socket] if given.console_socket else []
    creating = ["create", "--bundle", given.bundle, "--pid-file", given.pid_file, *console, given.id]
    for command in (creating, ["start", given.id]):
        status = subprocess.run([RUNC, *before, *command]).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    main()
