"""The Debian package: what is in it, and its life on a copy of this machine.

install_test.sh is the same under systemd, on a machine of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import tomllib
from pathlib import Path

import pytest

from kernel import mounts
from proto.version import VERSION
from tests.packaging.host_state import host_state

HERE = Path(__file__).parent

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]


@pytest.fixture(scope="module")
def deb(packages: Path) -> Path:
    [path] = packages.glob("*.deb")
    return path


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_contents(deb: Path) -> None:
    assert output("dpkg-deb", "-f", deb, "Version").strip() == VERSION
    python = re.search(r"python3 \(>= (3\.\d+)\), python3 \(<< (3\.\d+)~\)", output("dpkg-deb", "-f", deb, "Depends"))
    assert python
    listed = [line.split(maxsplit=5) for line in output("dpkg-deb", "-c", deb).splitlines()]
    paths = {fields[5].split(" -> ")[0].removeprefix(".") for fields in listed}
    assert {fields[1] for fields in listed} == {"root/root"}
    assert all(fields[0][0] == "l" or fields[0][5] == fields[0][8] == "-" for fields in listed), "only root writes"
    site = f"/usr/lib/crisp/lib/python{python[1]}/site-packages"
    for path in (
        "/usr/bin/crisp",
        "/usr/share/man/man1/crisp-serve.1.gz",
        "/usr/share/bash-completion/completions/crisp",
        "/etc/crisp/crisp.toml",
        "/usr/lib/systemd/system/crisp.service",
        f"{site}/grpc/__init__.py",
    ):
        assert path in paths
    outside = {path for path in paths if not path.startswith("/usr/lib/crisp/") and not path.endswith("/")}
    assert not [path for path in outside if "python" in path], "no other program meets crisp's libraries"
    sources = {path for path in paths if path.endswith(".py") and "/site-packages/crisp/" in path}
    tag = f"cpython-{python[1].replace('.', '')}"
    assert sources
    assert all(re.sub(r"([^/]+)\.py$", rf"__pycache__/\1.{tag}.pyc", path) in paths for path in sources)


def test_configuration_has_every_key_commented_out(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
    text = (tmp_path / "etc/crisp/crisp.toml").read_text()
    assert not [value for value in tomllib.loads(text).values() if not isinstance(value, dict) or any(value.values())]
    whole = re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert whole == (HERE.parents[1] / "manifests/crisp.toml").read_text()


def test_installed_used_removed_purged(deb: Path, tmp_path: Path) -> None:
    directory = tmp_path / f"crispdeb{os.getpid()}{secrets.token_hex(3)}"
    before = host_state(directory)
    command = [HERE / "deb_in_a_copy.sh", deb, directory, directory.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{done.stdout[-2000:]}"
    assert host_state(directory) == before
    assert not mounts.below(str(directory))
