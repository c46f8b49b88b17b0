"""Man pages and completion: from the commands themselves, and understood by who reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cli.main import COMMANDS
from tests.harness.daemon import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, ROOT / "manifests" / "command_pages.py", target], check=True)
    return target


def test_every_command_has_a_page(pages: Path) -> None:
    names = {path.stem for path in (pages / "man").iterdir()}
    assert names >= {"crisp", *(f"crisp-{name}" for name in COMMANDS)}
    text = (pages / "man" / "crisp-exec.1").read_text()
    assert "Run a command in a running container; ends with its exit code: 126 if it cannot be run" in text
    assert "Give the process a terminal." in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_the_shell_can_read(pages: Path, shell: str) -> None:
    script = pages / "completions" / f"crisp.{shell}"
    assert "_CRISP_COMPLETE" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize(
    ("words", "wanted"), [("crisp im", "image"), ("crisp image im", "import"), ("crisp serve --", "--config")]
)
def test_what_can_come_next(words: str, wanted: str) -> None:
    environment = {
        **os.environ,
        "_CRISP_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-c", "from runtime.cli.main import main; main(prog_name='crisp')"]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"plain,{wanted}" in result.stdout.split()
