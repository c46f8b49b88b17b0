"""Root file systems and images for tests, made of a static busybox."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

BUSYBOX = "/bin/busybox"


def make_rootfs(directory: Path) -> Path:
    """A small root file system with a shell, users and groups."""
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "home/app", "var/empty"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        link = directory / "bin" / applet
        if not os.path.lexists(link):
            link.symlink_to("busybox")
    (directory / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\nwww:x:33:33::/var/empty:/bin/sh\n"
    )
    (directory / "etc/group").write_text("root:x:0:\napp:x:1000:\nwww:x:33:\nextra:x:50000:app\nmore:x:50001:app,www\n")
    (directory / "tmp").chmod(0o1777)
    return directory
