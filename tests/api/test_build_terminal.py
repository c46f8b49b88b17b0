"""`crisp build` before a person: what the terminal shows of a real build, and how it is left."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.building import NAME, context
from tests.api.test_command import command
from tests.harness.kubelet import Kubelet
from tests.harness.screen import Screen
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

TWO_STAGES = """\
FROM BASE AS one
RUN {one}
FROM BASE AS two
RUN echo two speaks; exec sleep 1000
FROM scratch
COPY --from=one /x /one
COPY --from=two /x /two
"""


@contextmanager
def building(kubelet: Kubelet, screen: Screen, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """As from a shell: Ctrl-C is a signal for it."""
    environment = {**os.environ, "TERM": "xterm"}
    words = ["setsid", "--ctty", *command(kubelet, "build", "-t", NAME, str(directory))]
    ends = {"stdin": screen.theirs, "stdout": screen.theirs, "stderr": screen.theirs}
    with subprocess.Popen(words, env=environment, **ends) as running:
        screen.begun()
        yield running


def test_ctrl_c_in_two_stages_at_once(kubelet: Kubelet, tmp_path: Path) -> None:
    place = context(tmp_path, TWO_STAGES.format(one="echo one speaks; exec sleep 1000"))
    with Screen() as screen, building(kubelet, screen, place) as running:
        screen.until("# one speaks")
        screen.until("# two speaks")
        assert not screen.cursor
        os.write(screen.ours, b"\x03")
        assert screen.end(running) == 130
        assert screen.cursor
        for stage in ("one", "two"):
            assert re.search(rf" => CANCELED \[{stage} 1/1\] RUN echo {stage} speaks; exec sleep 1000 +\d", screen.text), (
                screen.text
            )
        assert "Traceback" not in screen.text
        assert screen.text.splitlines()[-1].startswith("[+] Building ")
    wait_until(lambda: kubelet.daemon.leftovers() == [])


def test_ctrl_c_ends_what_is_fetched_for_two_stages(kubelet: Kubelet, tmp_path: Path) -> None:
    """By a registry that never answers; it is asked once."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Screen() as screen:
        name = f"127.0.0.1:{silent.getsockname()[1]}/none:1"
        place = context(tmp_path, f"FROM {name} AS one\nFROM {name}\nCOPY --from=one /x /\n")
        with building(kubelet, screen, place) as running:
            screen.until(f" => image {name}")
            line, _ = silent.accept()
            os.write(screen.ours, b"\x03")
            assert screen.end(running) == 130
            assert f" => CANCELED image {name}" in screen.text
            assert not select.select([silent], [], [], 0)[0]
            line.close()
    wait_until(lambda: kubelet.daemon.leftovers() == [])


def test_what_a_failed_step_has_printed_disturbs_nothing(kubelet: Kubelet, tmp_path: Path) -> None:
    """Neither the picture nor what is printed of it at the end; and the other stage ends with it."""
    evil = r"while ! [ -e /go ]; do printf '\033[2J\033[9;9H\033]0;title\007\233evil\n'; sleep 0.3; touch /go; done; exit 3"
    place = context(tmp_path, TWO_STAGES.format(one=evil))
    with Screen(columns=100) as screen, building(kubelet, screen, place) as running:
        assert screen.end(running) == 1
        assert screen.cursor
        assert re.search(
            r"\n------\n > \[one 1/1\] RUN while .*:\n\ufffdevil\n------\ncrisp: Containerfile:2: RUN", screen.text, re.S
        )
        assert re.search(r" => ERROR \[one 1/1\] RUN while", screen.text)
        assert re.search(r" => CANCELED \[two 1/1\] RUN echo two", screen.text)
        assert {*re.findall(rb"\x1b\[[\d;?]*([A-Za-z])", screen.raw)} <= {b"A", b"K", b"h", b"l", b"m"}
        assert b"\x1b]" not in screen.raw
