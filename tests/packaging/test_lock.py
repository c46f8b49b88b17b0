"""The locks name every package that pyproject.toml leads to, each with hashes, and are what is installed here."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADVICE = "say `make lock`"


@cache
def lock(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes by package."""
    found = {}
    for entry in re.split(r"\n(?=[a-z0-9])", (ROOT / f"requirements/{name}.txt").read_text()):
        if match := re.match(r"([a-z0-9.-]+)==(\S+)", entry):
            found[canonicalize_name(match[1])] = match[2], entry.count("--hash=sha256:")
    return found


def wanted(name: str) -> list[Requirement]:
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    lists = {
        "build": PROJECT["build-system"]["requires"],
        "run": project["dependencies"] + extras["tracing"],
        "test": project["dependencies"] + extras["tracing"] + extras["dev"] + PROJECT["build-system"]["requires"],
    }
    return [Requirement(text) for text in lists[name]]


@pytest.mark.parametrize("name", ["build", "run", "test"])
def test_what_is_asked_for_is_locked(name: str) -> None:
    locked = lock(name)
    assert locked
    assert all(hashes for _, hashes in locked.values())
    for requirement in wanted(name):
        version, _ = locked.get(canonicalize_name(requirement.name), ("", 0))
        assert version, f"{requirement.name} is not in requirements/{name}.txt: {ADVICE}"
        assert requirement.specifier.contains(version), f"{requirement} and not {version}: {ADVICE}"


@pytest.mark.parametrize("name", ["build", "run", "test"])
def test_what_that_needs_is_locked_too(name: str) -> None:
    """As far as the packages are installed here, which `make test` sees to."""
    for package in lock(name):
        try:
            needs = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for other platforms or versions of Python
        for requirement in map(Requirement, needs):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                version, _ = lock(name).get(canonicalize_name(requirement.name), ("", 0))
                assert version, f"{package} needs {requirement}, and requirements/{name}.txt has none: {ADVICE}"
                assert requirement.specifier.contains(version), f"{package}: {requirement} and not {version}"


def test_locks_agree() -> None:
    for name in ("run", "build"):
        assert lock(name).items() <= lock("test").items(), ADVICE
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]


def test_what_is_installed_is_locked() -> None:
    """The versions that these tests run with are those that users get."""
    for package, (version, _) in lock("test").items():
        try:
            assert importlib.metadata.version(package) == version, package
        except importlib.metadata.PackageNotFoundError:
            continue
