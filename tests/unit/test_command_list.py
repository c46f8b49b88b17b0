"""What `crisp --help` and a shell's completion list, without loading what they list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runtime.cli.main import COMMANDS, load, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name: str) -> None:
    _place, said = COMMANDS[name]
    assert load(name).get_short_help_str(limit=1000).startswith(said)


def test_everything_is_listed() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout
    for name, (_place, said) in COMMANDS.items():
        assert name in shown
        assert said.split()[0] in shown


def test_a_tab_gets_names_and_what_they_are() -> None:
    context = click.Context(main)
    found = {item.value: item.help for item in main.shell_complete(context, "r")}
    assert found == {name: COMMANDS[name][1] for name in ("restart", "rm", "rmi", "run")}
    assert "--socket" in {item.value for item in main.shell_complete(context, "--")}


def test_to_list_loads_no_command() -> None:
    script = "import sys; from runtime.cli.main import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = {name for name in shown.split() if name.startswith(("runtime.cli.", "grpc"))}
    assert loaded == {"runtime.cli.main", "runtime.cli.docker_words"}, "which is none"
