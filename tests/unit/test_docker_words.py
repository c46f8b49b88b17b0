"""Words that docker's users type: flags with values, and commands that there are not."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from runtime.cli import containers
from runtime.cli.docker_words import LACKING, plain
from runtime.cli.main import COMMANDS, load, main


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("run", "--rm=true -t=false -i=1 image", "--rm -i image"),
        ("run", "--rm=TRUE image --rm=true", "--rm image --rm=true"),
        ("run", "--rm=perhaps image", "--rm=perhaps image"),
        ("run", "-e --rm=true image", "-e --rm=true image"),
        ("run", "--env --rm=true --tty=1 image", "--env --rm=true --tty image"),
        ("run", "-ite --rm=true --rm=true image", "-ite --rm=true --rm image"),
        ("run", "-eA --rm=true image", "-eA --rm image"),
        ("run", "--env=--rm=true --rm=true image", "--env=--rm=true --rm image"),
        ("run", "-- image --rm=true", "-- image --rm=true"),
        ("exec", "--tty=true c sh --tty=true", "--tty c sh --tty=true"),
        ("build", "--no-cache=true . --pull=false", "--no-cache ."),
        ("attach", "--stdin=false c", "--no-stdin c"),
        ("attach", "--stdin=true c", "--stdin c"),
        ("ps", "-a=true", "-a"),
        ("ps", "--filter", "--filter"),
        ("run", "-e=A=b -h=foo -itv=/a:/b image", "-eA=b -hfoo -itv/a:/b image"),
        ("run", "-eA=b -e A=c -e= x image", "-eA=b -e A=c -e= x image"),
        ("run", "-it=false -ti=1 -it=perhaps image", "-i -ti -it=perhaps image"),
        ("run", "image -e=A=b -it=false", "image -e=A=b -it=false"),
        ("run", "--rm -e --rm -i --rm=false image", "-e --rm -i image"),
        ("exec", "-e=A=b -w=/tmp c env -u=33", "-eA=b -w/tmp c env -u=33"),
    ],
)
def test_flags_with_values(name: str, typed: str, meant: str) -> None:
    assert plain(load(name), typed.split()) == meant.split()


def run(*words: str) -> click.testing.Result:
    return CliRunner().invoke(main, ["--socket", "/no/such", *words])


def test_what_there_is_not_is_said() -> None:
    assert not set(LACKING) & set(COMMANDS)
    for name in LACKING:
        told = run(name, "x")
        assert (told.exit_code, f"there is no `crisp {name}`" in told.output) == (2, True), told.output
    assert "No such command 'pauze'" in run("pauze").output


def test_nouns() -> None:
    assert set(containers.COMMANDS) <= set(COMMANDS)
    for words in (["container", "ls", "--help"], ["container", "run", "--help"], ["image", "inspect", "--help"]):
        assert (run(*words).exit_code, words[1] in run(words[0], "--help").output) == (0, True)
    told = run("container", "ls", "-a=true")
    assert (told.exit_code, "no daemon at /no/such" in told.output) == (1, True)


def test_help_is_a_command_too() -> None:
    assert run("help").output == run("--help").output
    assert run("help", "run").output == run("run", "--help").output
