"""`crisp build` beside Debian's buildah: three builds, cold and warm, in one table.

    debootstrap --variant=minbase --include=gcc,libc6-dev bookworm DIR
    .venv/bin/python -m tests.bench.build --base DIR [--rounds 5]

static: files upon nothing. packages: ten Debian packages of the benchmark's own, installed by apt from a mirror that is a
directory. program: a C program, compiled in one stage, alone in the other. Cold is with the base image there and no step
kept; warm is the same build again. The two take turns; both without a network for RUN, on one disk. buildah is given
--layers, as it keeps no steps without, and runc, for its crun refuses hybrid cgroups; crisp takes the one that it chooses.
Each round has a new ext4 of its own in a loop device (see tests/bench/pull.py).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from proto import admin_pb2 as admin
from tests.bench.pull import mount_new
from tests.bench.runtimes import Crisp, isolate
from tests.harness.rootfs import BUSYBOX

BASE = "localhost/bench-base:1"
PACKAGES = 10
ARCHIVE = "base.tar"
DISK_MIB = 8192
ROOT = Path(__file__).resolve().parents[2]

STATIC = """\
FROM scratch
COPY busybox /bin/busybox
COPY files /srv/files
ENV PATH=/bin
CMD ["/bin/busybox", "sh"]
"""
DEBIAN = f"""\
FROM {BASE}
COPY mirror /mirror
RUN echo 'deb [trusted=yes] file:/mirror ./' > /etc/apt/sources.list && apt-get update
RUN apt-get install -y --no-install-recommends {" ".join(f"bench{number}" for number in range(PACKAGES))}
CMD ["/bin/bash"]
"""
PROGRAM = f"""\
FROM {BASE} AS build
WORKDIR /src
COPY main.c .
RUN gcc -O2 -static -o /program main.c
FROM scratch
COPY --from=build /program /program
CMD ["/program"]
"""
SOURCE = '#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n'

Build = Callable[[str, Path, bool], None]
"""Of a name and a context, cold or warm."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a root directory with Debian, apt and gcc")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    isolate()
    place = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    try:
        contexts = make_contexts(place / "contexts")
        make_base(place, options.base)
        rows: dict[str, dict[str, list[float]]] = {}
        for number in range(options.rounds):
            one_round(place, f"round{number}", contexts, rows)
        print(table(rows))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def one_round(place: Path, name: str, contexts: dict[str, Path], rows: dict[str, dict[str, list[float]]]) -> None:
    """Every build with either builder, cold and warm."""
    store = place / name
    mount_new(store, place / "disk", DISK_MIB)
    daemon, buildah = Crisp(store / "crisp"), buildah_in(store)
    client = daemon.start()
    try:
        client.admin.ImportImages(admin.ImportImagesRequest(path=str(place / ARCHIVE)))
        run(*buildah, "pull", f"oci-archive:{place / ARCHIVE}:{BASE}")
        crisp = [sys.executable, str(ROOT / "crisp.py"), "--socket", daemon.socket]
        for build, context in contexts.items():
            for builder, how in (("buildah", with_buildah(buildah)), ("crisp", with_crisp(crisp))):
                for cold in (True, False):
                    begin = time.monotonic()
                    how(build, context, cold)
                    row = rows.setdefault(f"{build}, {'cold' if cold else 'warm'}", {})
                    row.setdefault(builder, []).append(time.monotonic() - begin)
    finally:
        client.__exit__(None, None, None)
        daemon.stop()
        subprocess.run(["umount", "--recursive", store], check=True)
        (place / "disk").unlink()


def buildah_in(directory: Path) -> list[str]:
    """Its command with a store of its own."""
    store = ["--root", str(directory / "buildah"), "--runroot", str(directory / "buildah-run")]
    return ["buildah", *store, "--storage-driver", "overlay"]


def run(*command: str | Path) -> None:
    """It has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")


def make_base(place: Path, root: Path) -> None:
    """The base image as an archive."""
    buildah = buildah_in(place)
    (place / "base.Containerfile").write_text("FROM scratch\nCOPY . /\n")
    run(*buildah, "bud", "-f", place / "base.Containerfile", "-t", BASE, root)
    run(*buildah, "push", BASE, f"oci-archive:{place / ARCHIVE}:{BASE}")
    subprocess.run(["umount", place / "buildah/overlay"], check=False, capture_output=True)


def make_contexts(place: Path) -> dict[str, Path]:
    """By name of the build."""
    static, packages, program = (place / name for name in ("static", "packages", "program"))
    for directory in (static / "files", packages / "mirror", program):
        directory.mkdir(parents=True)
    shutil.copy(BUSYBOX, static / "busybox")
    for number in range(1000):
        (static / "files" / f"file{number}").write_bytes(b"%d\n" % number * 500)
    (static / "Containerfile").write_text(STATIC)
    for number in range(PACKAGES):
        make_package(place / f"bench{number}", packages / "mirror", number)
    index = subprocess.run(
        ["dpkg-scanpackages", "--multiversion", "."], cwd=packages / "mirror", capture_output=True, check=True
    ).stdout
    (packages / "mirror/Packages").write_bytes(index)
    (packages / "Containerfile").write_text(DEBIAN)
    (program / "main.c").write_text(SOURCE)
    (program / "Containerfile").write_text(PROGRAM)
    return {"static": static, "packages": packages, "program": program}


def make_package(tree: Path, mirror: Path, number: int) -> None:
    """A Debian package with some hundred files."""
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: bench{number}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: files of a benchmark\n"
    )
    files = tree / f"usr/share/bench{number}"
    files.mkdir(parents=True)
    for file in range(300):
        (files / f"file{file}").write_bytes(b"%d %d\n" % (number, file) * 700)
    run("dpkg-deb", "--build", "-Zgzip", tree, mirror)


def with_buildah(buildah: list[str]) -> Build:
    """Cold is without the steps that it has kept."""

    def build(name: str, context: Path, cold: bool) -> None:
        how = ["--layers", "--network", "none", "--runtime", "runc", *(["--no-cache"] if cold else [])]
        run(*buildah, "bud", *how, "-t", f"localhost/{name}:1", context)

    return build


def with_crisp(crisp: list[str]) -> Build:
    """The same."""

    def build(name: str, context: Path, cold: bool) -> None:
        how = ["--network", "none", *(["--no-cache"] if cold else [])]
        run(*crisp, "build", *how, "-t", f"localhost/{name}:1", context)

    return build


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Medians, for docs/performance.md."""
    lines = ["| | buildah, s | crisp, s | ratio |", "|---|---|---|---|"]
    for row, times in rows.items():
        found = {builder: statistics.median(each) for builder, each in times.items()}
        ratio = found["crisp"] / found["buildah"]
        lines.append(f"| {row} | {found['buildah']:.2f} | {found['crisp']:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
