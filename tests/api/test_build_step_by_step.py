"""docs/building.md, "Step by step": an image made by commands that are there anyway, each line as the page has it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proto import admin_pb2 as admin
from runtime.build.session import Session
from runtime.client import Client
from tests.api.building import NAME, build, config, context, in_image
from tests.api.test_command import IMAGE, crisp
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

INSTEAD = {"docker.io/library/debian": IMAGE, "apt-get": "mkdir", "update": "/made", "localhost/app:1": NAME}
"""There are no registries here."""

BASE = """
FROM BASE
HEALTHCHECK --interval=7s CMD true
SHELL ["/bin/sh", "-ec"]
ONBUILD RUN true
STOPSIGNAL SIGUSR1
VOLUME /data
ENV B=a
LABEL a=b
CMD ["sleep", "1000"]
"""


@pytest.fixture(autouse=True)
def no_steps_stay(kubelet: Kubelet) -> Iterator[None]:
    yield
    wait_until(lambda: not list(kubelet.daemon.root.glob("builds/*")))
    kubelet.client.admin.PruneBuildCache(admin.PruneBuildCacheRequest())


def lines() -> list[list[str]]:
    text = (ROOT / "docs/building.md").read_text()
    block = text[text.index("## Step by step") :].split("\n## ")[0]
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"(?m)^    (crisp .*)$", block)]


def whole_config(kubelet: Kubelet) -> dict[str, Any]:
    """As the image's document has it, with what the CRI does not tell."""
    with Client(kubelet.daemon.socket) as client, Session(client, None) as session:
        found = session.find(NAME)
    assert found is not None
    return dict(found.document["config"])


def test_the_lines_of_the_page(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "app.conf").write_text("of the host")
    told = lines()
    assert [words[0] for words in told] == ["run", "exec", "cp", "commit", "rm"]
    for words in told:
        done = crisp(kubelet, *(INSTEAD.get(word, word) for word in words), cwd=tmp_path)
        assert done.returncode == 0, done
    assert in_image(kubelet, NAME, "cat", "/etc/app.conf") == "of the host"
    assert in_image(kubelet, NAME, "ls", "-d", "/made") == "/made\n"
    made = config(kubelet, NAME)
    assert (made["Cmd"], "A=b" in made["Env"]) == (["app"], True)
    assert crisp(kubelet, "rmi", NAME).returncode == 0


def test_a_commit_changes_what_it_is_asked_for_and_nothing_else(kubelet: Kubelet, tmp_path: Path) -> None:
    build(kubelet, "-t", NAME, str(context(tmp_path, BASE)))
    container = crisp(kubelet, "run", "-d", NAME).stdout.decode().strip()
    try:
        before = whole_config(kubelet)
        for options, changed in (([], {}), (["--env", "A=b", "--user", "1"], {"User": "1"})):
            done = crisp(kubelet, "commit", container, NAME, *options)
            assert done.returncode == 0, done
            after = whole_config(kubelet)
            assert {**after, "Env": []} == {**before, **changed, "Env": []}, json.dumps(after)
        assert after["Env"] == ["B=a", "A=b"]
        assert {"Healthcheck", "Shell", "OnBuild", "StopSignal", "Volumes"} <= set(after)
    finally:
        crisp(kubelet, "rm", "-f", container)
        crisp(kubelet, "rmi", NAME)
