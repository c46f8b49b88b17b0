"""A container that has ended is deleted by its shim alone, where the runtime's `delete` would do no more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kernel.conftest import ShimLab

pytestmark = pytest.mark.root

WITNESS = """#!/bin/sh
for argument; do
    case $argument in create|start|delete) echo $argument >> "$0.verbs"; break;; esac
done
exec {runtime} "$@"
"""


@pytest.fixture
def verbs(lab: ShimLab) -> Path:
    """Has what the runtime is asked for."""
    program = lab.base / "witness"
    program.write_text(WITNESS.format(runtime=lab.program))
    program.chmod(0o755)
    lab.program, lab.delete_is_removal, lab.start_is_a_byte = str(program), True, False
    return Path(f"{program}.verbs")


@pytest.mark.parametrize("command", ["exit 3", "sleep 1000 & exec sleep 1000"], ids=["exits", "killed"])
async def test_the_runtime_is_not_asked(lab: ShimLab, verbs: Path, command: str) -> None:
    _, shim = await lab.run("/bin/sh", "-c", command)
    if "sleep" in command:
        await shim.kill()
    record = await shim.wait()
    assert record is not None
    assert record.exit_code == (137 if "sleep" in command else 3)
    await shim.gone()
    assert verbs.read_text().split() == ["create", "start"]
    assert not list((lab.base / "oci").glob("*"))


async def test_it_runs_the_hooks_that_are_for_the_end(lab: ShimLab, verbs: Path, tmp_path: Path) -> None:
    lab.hooks = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > /dev/null; echo over > {tmp_path}/hook"]}]}
    _, shim = await lab.run("/bin/true")
    await shim.gone()
    assert verbs.read_text().split() == ["create", "start", "delete"]
    assert (tmp_path / "hook").read_text() == "over\n"


async def test_it_is_asked_for_what_is_more_than_files(lab: ShimLab, verbs: Path) -> None:
    bundle, shim = await lab.run("/bin/sleep", "1000")
    (lab.base / "oci" / bundle.name / "directory").mkdir()
    await shim.kill()
    await shim.gone()
    assert verbs.read_text().split() == ["create", "start", "delete"]


async def test_it_is_asked_after_a_create_that_failed(lab: ShimLab, verbs: Path) -> None:
    _, shim, _ = await lab.create("/bin/not-there")
    assert "delete" in verbs.read_text().split()
    await asyncio.wait_for(shim.kill(), 20)
    await shim.gone()
