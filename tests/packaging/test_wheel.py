"""Wheel and source distribution: one name in site-packages, every file that crisp needs, and the same from either."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from proto.version import VERSION
from tests.harness.daemon import ROOT, Daemon
from tests.packaging.installed import build_wheel, install

ROOMS = ("proto", "kernel", "shim", "imagesvc", "runtime")


@pytest.fixture
def wheel(packages: Path) -> Path:
    [path] = packages.glob("*.whl")
    return path


def test_one_name_and_all_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_bytes(archive.read(f"crisp-{VERSION}.dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"crisp", f"crisp-{VERSION}.dist-info"}
    listed = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split() if (ROOT / name).exists()}
    assert {f"crisp/{name}" for name in tracked} <= names
    assert not [name for name in names if "__pycache__" in name]
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_source_distribution_builds_the_same_wheel(packages: Path, wheel: Path, tmp_path: Path) -> None:
    [sdist] = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    again = build_wheel(tree, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {info.filename: info.CRC for info in other.infolist()}


def fresh_environment(place: Path, wheel: Path) -> list[str]:
    """A new virtual environment with the wheel, put there by pip; its libraries are those of the tests' environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    [site] = place.glob("lib/python3*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(place)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    return [str(place / "bin/crisp")]


@pytest.mark.root
def test_installed_it_serves(own_network: None, wheel: Path, tmp_path: Path) -> None:
    program = fresh_environment(tmp_path / "environment", wheel)
    assert VERSION in subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
    assert "uninstall" in subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout
    assert "kernel" in subprocess.run([*program, "check"], capture_output=True, text=True).stdout
    daemon = Daemon()
    daemon.program = program
    try:
        daemon.start()
    finally:
        daemon.destroy()


def test_beside_a_package_of_the_same_name_as_a_room(wheel: Path, tmp_path: Path) -> None:
    """Neither is disturbed: another `proto` is who asks for it, and crisp finds its own."""
    [python, flag, script] = install(wheel, tmp_path / "site")
    (tmp_path / "site/proto").mkdir()
    (tmp_path / "site/proto/__init__.py").write_text("OTHER = True\n")
    other = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import crisp, proto; assert proto.OTHER"
    subprocess.run([sys.executable, "-P", "-c", other], check=True)
    subprocess.run([python, "-P", flag, script, "--version"], check=True, capture_output=True)
