"""The picture that a build draws on a terminal, as its reader sees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from proto import admin_pb2 as admin
from runtime.cli import build_progress
from runtime.cli.signals import Signals
with Signals().told() as signals, build_progress.shown("auto", signals) as shown:
    for line in sys.stdin:
        exec(line)
print("sha256:id")
"""


@contextmanager
def drawn(screen: Screen, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that does what it is told, a line each, and shows a build."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    }
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=screen.theirs,
        stderr=screen.theirs,
        cwd=ROOT,
        env={**clean, "TERM": "xterm-256color", **environment},
        start_new_session=True,
    ) as program:
        screen.begun()
        yield program
        assert program.poll() is not None


def tell(program: subprocess.Popen[bytes], *lines: str) -> None:
    assert program.stdin is not None
    for line in lines:
        program.stdin.write(line.encode() + b"\n")
    program.stdin.flush()


def close(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin is not None
    program.stdin.close()


def test_what_is_done_stays_and_what_goes_on_is_drawn() -> None:
    with Screen() as screen, drawn(screen) as program:
        tell(program, "shown.begin('[a 1/2] RUN make'), shown.begin('[b 1/1] RUN x')")
        tell(program, "for n in range(20): shown.output(1, b'line %d\\n' % n)")
        tell(program, r"shown.output(2, b'10 %\r20 %\r30 %'); shown.warn('take care')")
        seen = screen.until("# 30 %")
        assert re.search(
            r"take care\n\[\+\] Building \d\.\ds \(0 done\)\n => \[a 1/2\] RUN make +\d\.\ds\n => => # line 14\n", seen
        )
        assert "line 19\n => [b 1/1] RUN x" in seen
        assert not screen.cursor
        tell(program, "shown.end(1, 'done'); shown.begin('[a 2/2] RUN next'), shown.end(3, 'cached'), shown.end(2, 'done')")
        close(program)
        assert screen.end(program) == 0
        steps = r" => \[a 1/2\] RUN make +\d+\.\ds\n => CACHED \[a 2/2\] RUN next +\d+\.\ds\n => \[b 1/1\] RUN x +\d+\.\ds\n"
        total = r"\[\+\] Building \d+\.\ds \(3 done, 1 of them cached\) FINISHED\n"
        assert re.fullmatch(rf"crisp: take care\n{steps}{total}sha256:id", screen.text), screen.text
        assert screen.cursor
        assert re.search(rb"\x1b\[[\d;]*3[\d;]*m", screen.raw)


def test_what_failed_has_all_its_output() -> None:
    with Screen(rows=10) as screen, drawn(screen) as program:
        tell(
            program,
            r"shown.begin('RUN make\nmore')",
            r"shown.begin('[b] RUN x'), shown.output(2, b'nobody wants this\n')",
        )
        tell(program, r"for n in range(300): shown.output(1, b'a\tline \x1b[31m%d\x1b[0m\x07\r\n' % n)")
        tell(program, "shown.end(1, 'exit code 1'); shown.end(2, 'the build has ended'); raise SystemExit(1)")
        assert screen.end(program) == 1
        expected = "".join(f"a       line {n}?\n" for n in range(300))
        assert f"------\n > RUN make:\n{expected}------" in screen.text
        assert re.search(r" => ERROR RUN make +\d.\ds\n => CANCELED \[b\] RUN x +\d.\ds\n", screen.text)
        assert "nobody wants" not in screen.text
        assert "FINISHED" not in screen.text


def test_of_output_without_an_end_there_is_the_end() -> None:
    with Screen() as screen, drawn(screen) as program:
        tell(program, "shown.begin('RUN make'); [shown.output(1, b'x' * 999 + b'\\n') for _ in range(6000)]")
        tell(program, "shown.output(1, b'the last'); shown.end(1, 'exit code 1')")
        close(program)
        assert screen.end(program) == 0
        kept = 2 << 20
        assert f"(the first {6000 * 1000 + 8 - kept} bytes are left out)" in screen.text
        assert "\nthe last\n------" in screen.text


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_signal_leaves_the_terminal_as_it_was(number: int) -> None:
    with Screen() as screen, drawn(screen) as program:
        tell(program, "shown.begin('RUN make'); shown.output(1, b'some\\n')")
        screen.until("# some")
        program.send_signal(number)
        assert screen.end(program) == 128 + number
        assert re.fullmatch(r"\[\+\] Building \d+\.\ds \(0 done\)", screen.text), screen.text
        assert screen.cursor


@pytest.mark.parametrize("columns", [20, 79])
def test_every_width(columns: int) -> None:
    """Nothing is broken into two lines, before and after the window has changed its size."""
    with (
        Screen(columns=120, rows=12) as screen,
        drawn(screen, COLUMNS="120", LINES="50") as program,
    ):  # which some shells export
        tell(program, "shown.begin('RUN ' + 'long ' * 50); shown.output(1, b'output ' * 50 + b'\\n')")
        screen.until("# output output")
        screen.resize(columns, 12)
        tell(program, r"shown.output(1, b'after\n')")
        screen.until("# after")
        before = len(screen.raw)
        tell(program, r"shown.output(1, '木'.encode() * 50 + b'\n')")
        screen.until("# 木")
        drawn_then = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", screen.raw[before:]).decode(errors="replace")
        assert max(map(len, re.split(r"[\r\n]+", drawn_then))) <= columns
        close(program)
        assert screen.end(program) == 0


@pytest.mark.parametrize(("columns", "seen"), [(1, "["), (10, "[+] Buildi")])
def test_a_terminal_with_hardly_a_column(columns: int, seen: str) -> None:
    """Each row of the picture is one of the terminal's."""
    with Screen(columns=columns, rows=12) as screen, drawn(screen) as program:
        tell(program, "[shown.output(shown.begin('RUN step'), b'output\\n') for _ in range(3)]")
        screen.until(seen)
        written = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", screen.raw).decode()
        assert max(map(len, re.split(r"[\r\n]+", written))) <= columns
        tell(program, "[shown.end(n, 'done') for n in (1, 2, 3)]")
        close(program)
        assert screen.end(program) == 0
        assert screen.cursor


def test_more_steps_than_rows() -> None:
    with Screen(rows=6) as screen, drawn(screen) as program:
        tell(program, "for n in range(30): shown.output(shown.begin('step %d' % n), b'output\\n')")
        screen.until("=> step 3")
        tell(program, "for n in range(30): shown.end(n + 1, 'done')")
        close(program)
        assert screen.end(program) == 0
        lines = screen.text.splitlines()
        assert [line.split()[2] for line in lines[:30]] == [str(n) for n in range(30)], lines
        assert len(lines) == 32


def test_without_colours() -> None:
    with Screen() as screen, drawn(screen, NO_COLOR="1") as program:
        tell(program, "shown.begin('RUN make')")
        screen.until("RUN make")
        tell(program, "shown.end(1, 'done')")
        close(program)
        assert screen.end(program) == 0
        assert not re.search(rb"\x1b\[[\d;]*3[\d;]*m", screen.raw)


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_terminal_that_can_nothing(kind: str) -> None:
    with Screen() as screen, drawn(screen, TERM=kind) as program:
        tell(program, "shown.begin('RUN make'); shown.output(1, b'a b\\n'); shown.end(1, 'done')")
        close(program)
        assert screen.end(program) == 0
        assert re.fullmatch(r"#1 RUN make\n#1 \d\.\d{3} a b\n#1 DONE \d\.\ds\nsha256:id", screen.text), screen.text
        assert b"\x1b" not in screen.raw


def test_another_encoding() -> None:
    with Screen() as screen, drawn(screen, PYTHONIOENCODING="latin-1", PYTHONUTF8="0") as program:
        tell(
            program,
            "shown.begin('caf\\u00e9 \\u6728'); shown.output(1, b'\\xff\\xe2\\x82\\xac\\n'); shown.end(1, 'exit code 1')",
        )
        close(program)
        assert screen.end(program) == 0
        assert r" => ERROR caf" in screen.text
        assert r"\u20ac" in screen.text


def test_bars_of_what_is_fetched() -> None:
    with Screen(columns=100) as screen, drawn(screen) as program:
        tell(program, "shown.begin('image a'); layer = dict(item='sha256:' + 'a' * 64, stage='downloading', total=2000000)")
        tell(program, "shown.fetched(1, admin.ImageProgress(**layer, current=1000000))")
        seen = screen.until("1.0/2.0 MB")
        assert re.search(r" => image a +\d\.\ds\n *aaaaaaaaaaaa downloading  ━+", seen), seen
        tell(program, "shown.fetched(1, admin.ImageProgress(done=True, image_ids=['x'])); shown.end(1, 'done')")
        close(program)
        assert screen.end(program) == 0
        assert "downloading" not in screen.text


def test_a_terminal_that_goes(tmp_path: Path) -> None:
    """No traceback, wherever it would go; and the work goes on."""
    with Screen() as screen:
        os.set_inheritable(screen.theirs, True)
        program = PROGRAM.replace('print("sha256:id")', f"open({str(tmp_path / 'end')!r}, 'w').write('reached')")
        environment = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=screen.theirs, cwd=ROOT, env=environment
        ) as running:
            screen.begun()
            tell(running, "shown.begin('RUN make')")
            screen.until("RUN make")
            os.close(screen.ours)
            screen.ours = -1
            tell(
                running,
                "for n in range(100): shown.output(1, b'x\\n')",
                "import time; time.sleep(0.3); shown.end(1, 'done')",
            )
            close(running)
            assert running.wait() == 0
    assert (tmp_path / "end").read_text() == "reached"
