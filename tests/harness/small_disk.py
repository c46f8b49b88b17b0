"""A small file system in a file, to be filled to the last block or inode."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Self

from kernel import mounts
from tests.harness.waiting import wait_until

FILLER = "filler"


class SmallDisk:
    """An ext4 of `mib` MiB with that many inodes, mounted at `path`."""

    def __init__(self, path: Path, mib: int, inodes: int = 1024) -> None:
        self.path = path
        self._image = path.with_name(f"{path.name}.img")
        with self._image.open("wb") as file:
            file.truncate(mib << 20)
        run("mkfs.ext4", "-q", "-m", "0", "-N", str(inodes), str(self._image))
        path.mkdir()
        self._mount()

    def _mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path))

    def break_down(self) -> None:
        """An error of the disk, upon which the kernel makes the file system read-only under everybody's open files."""
        Path("/sys/fs/ext4", self._device(), "trigger_fs_error").write_text("test")

    def _device(self) -> str:
        device = os.stat(self.path).st_dev
        return os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))

    def repair(self) -> None:
        """What an administrator does then; nobody may use the disk, and who has just ended may let go of it any moment."""
        name = self._device()
        run("umount", str(self.path))
        wait_until(lambda: not Path("/sys/fs/ext4", name).exists())
        subprocess.run(["e2fsck", "-fy", str(self._image)], capture_output=True)
        self._mount()

    def fill(self) -> None:
        """Leave no block, also of those that have become free meanwhile."""
        with (self.path / FILLER).open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def fill_inodes(self) -> None:
        """Leave no inode."""
        directory = self.path / "fillers"
        directory.mkdir(exist_ok=True)
        try:
            for number in range(1 << 20):
                (directory / f"{number}").touch()
        except OSError:
            return

    def free(self) -> None:
        """Take the fillers away."""
        (self.path / FILLER).unlink(missing_ok=True)
        for file in self.path.glob("fillers/*"):
            file.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        mounts.detach_all(str(self.path))
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True)
        self._image.unlink()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
