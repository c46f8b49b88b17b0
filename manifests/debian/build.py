"""Build the Debian package: the wheel and the locked libraries in a virtual environment of its own, with unit and config.

    python manifests/debian/build.py --python /usr/bin/python3 --dist dist

`dist` has the wheel and, in `pages`, what command_pages.py has made; it gets the package. The same sources and
SOURCE_DATE_EPOCH give the same bytes.

    /usr/bin/crisp
    /usr/lib/crisp/                     the environment: bin/python3, lib/pythonX.Y/site-packages
    /usr/lib/systemd/system/crisp.service
    /etc/crisp/crisp.toml               every key, commented out: what is not set follows the program's defaults
    /usr/share/doc/crisp/               documentation; examples/ has the other manifests
    /usr/share/man/man1/, /usr/share/bash-completion/completions/, /usr/share/zsh/vendor-completions/,
    /usr/share/fish/vendor_completions.d/      man pages and completions
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "manifests/debian"
SCRIPTS = ("postinst", "prerm", "postrm")
COMPLETIONS = {
    "crisp.bash": "usr/share/bash-completion/completions/crisp",
    "crisp.zsh": "usr/share/zsh/vendor-completions/_crisp",
    "crisp.fish": "usr/share/fish/vendor_completions.d/crisp.fish",
}
DOCUMENTS = ("README.md", "SECURITY.md", "docs/*.md")
EXAMPLES = ("*.yaml", "*.conflist", "crisp.logrotate", "prometheus/*", "grafana/*")


def main() -> None:
    """Build one package and print its path."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="the Python that the package is for")
    parser.add_argument("--dist", type=Path, required=True)
    arguments = parser.parse_args()
    [wheel] = arguments.dist.glob("crisp-*.whl")
    version = wheel.name.split("-")[1]
    architecture = _output("dpkg", "--print-architecture")
    python = _output(arguments.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    # rc1 comes before the release, which is what ~ says to dpkg.
    debian_version = re.sub(r"(a|b|rc|\.dev)(?=\d)", r"~\1", version)
    package = arguments.dist / f"crisp_{debian_version}_{architecture}.deb"
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        tree.chmod(0o755)
        environment(tree / "usr/lib/crisp", arguments.python, python, wheel)
        files(tree, arguments.dist / "pages")
        control(tree, debian_version, architecture, python)
        _settle(tree)
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", tree, package], check=True)


def environment(place: Path, interpreter: str, python: str, wheel: Path) -> None:
    """A virtual environment as `python -m venv` would make it there, with the locked libraries and the wheel.

    Compiled, and never compiled again: root would otherwise write files at the first run that dpkg does not know of.
    """
    site = place / f"lib/python{python}/site-packages"
    site.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "--disable-pip-version-check", "--quiet", "install"]
    install = [*pip, "--root-user-action", "ignore", "--no-compile", "--target", site]
    locked = ["--require-hashes", "--only-binary", ":all:", "--requirement", ROOT / "requirements/run.txt"]
    subprocess.run([*install, *locked], check=True)
    own = ["--no-deps", "--no-index", "--find-links", wheel.parent, f"crisp=={wheel.name.split('-')[1]}"]
    shutil.rmtree(site / "bin")  # the libraries' commands
    subprocess.run([*install, *own], check=True)
    shutil.rmtree(site / "bin")
    compile_all = [interpreter, "-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*compile_all, "-s", site, "-p", f"/usr/lib/crisp/lib/python{python}/site-packages", site], check=True)
    (place / "bin").mkdir()
    (place / "bin/python3").symlink_to(f"/usr/bin/python{python}")
    (place / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")


def files(tree: Path, pages: Path) -> None:
    """Everything but the environment."""
    _put(tree / "usr/bin/crisp", (DEBIAN / "crisp").read_bytes(), 0o755)
    _put(tree / "usr/lib/systemd/system/crisp.service", (ROOT / "manifests/crisp.service").read_bytes())
    _put(tree / "etc/crisp/crisp.toml", configuration((ROOT / "manifests/crisp.toml").read_text()).encode())
    documents = tree / "usr/share/doc/crisp"
    _put(documents / "copyright", (DEBIAN / "copyright").read_bytes())
    _put(documents / "changelog.gz", _zipped((ROOT / "CHANGELOG.md").read_bytes()))
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            _put(documents / path.relative_to(ROOT), path.read_bytes())
    for pattern in EXAMPLES:
        for path in sorted((ROOT / "manifests").glob(pattern)):
            _put(documents / "examples" / path.relative_to(ROOT / "manifests"), path.read_bytes())
    for path in sorted((pages / "man").iterdir()):
        _put(tree / f"usr/share/man/man1/{path.name}.gz", _zipped(path.read_bytes()))
    for name, target in COMPLETIONS.items():
        _put(tree / target, (pages / "completions" / name).read_bytes())


def configuration(text: str) -> str:
    """The file with every key, with each of them commented out."""
    return re.sub(r"^(?=[A-Za-z_]+ = )", "#", text, flags=re.MULTILINE)


def control(tree: Path, version: str, architecture: str, python: str) -> None:
    """The package's own files."""
    place = tree / "DEBIAN"
    major, minor = python.split(".")
    regular = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    values = {
        "VERSION": version,
        "ARCHITECTURE": architecture,
        "PYTHON": python,
        "NEXT_PYTHON": f"{major}.{int(minor) + 1}",
        "SIZE": str(sum(path.stat().st_size for path in regular) // 1024),
    }
    text = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], (DEBIAN / "control").read_text())
    _put(place / "control", text.encode())
    _put(place / "conffiles", b"/etc/crisp/crisp.toml\n")
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in regular)  # noqa: S324
    _put(place / "md5sums", sums.encode())
    for name in SCRIPTS:
        _put(place / name, (DEBIAN / name).read_bytes(), 0o755)


def _settle(tree: Path) -> None:
    """Modes that do not depend on who builds."""
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _put(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    os.umask(0o022)
    main()
