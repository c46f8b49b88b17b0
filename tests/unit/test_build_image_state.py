"""What instructions make of an image's configuration, as docker does it."""

from __future__ import annotations

from typing import Any

import pytest

from imagesvc.containerfile.parser import parse
from imagesvc.containerfile.scopes import Platforms, Scope
from imagesvc.platforms import Platform
from runtime.build.image_state import ImageState

PLATFORM = Platform("linux", "arm64", "v8")
BASE = {
    "architecture": "amd64",
    "os": "linux",
    "author": "somebody",
    "created": "2020-01-01T00:00:00Z",
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
    "history": [{"created_by": "x"}],
    "config": {
        "Env": ["PATH=/bin", "A=1"],
        "Cmd": ["sh"],
        "Labels": {"a": "1", "b": "2"},
        "ExposedPorts": {"80/tcp": {}},
        "WorkingDir": "/srv",
        "User": "www",
    },
}


def after(text: str, state: ImageState | None = None) -> ImageState:
    """The state of an image of BASE after these instructions."""
    file = parse(f"FROM base\n{text}".encode(), "F")
    state = state or ImageState("sha256:base", BASE, "seed")
    scope = Scope.of_globals(file, {}, Platforms(PLATFORM, PLATFORM)).for_stage(state.environment)
    for step in file.stages[0].instructions:
        assert state.enter(scope.enter(step), scope.environment)
    return state


def changed(text: str) -> dict[str, Any]:
    """What of the configuration is otherwise than in BASE; None for what is gone."""
    before: dict[str, Any] = dict(BASE["config"])  # type: ignore[call-overload]
    found = after(text).config
    return {name: found.get(name) for name in {*before, *found} if found.get(name) != before.get(name)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ENV B=2 A=3", {"Env": ["PATH=/bin", "A=3", "B=2"]}),
        ("ENV PATH=/x:$PATH", {"Env": ["PATH=/x:/bin", "A=1"]}),
        ("LABEL b=3 c='d e'", {"Labels": {"a": "1", "b": "3", "c": "d e"}}),
        ("EXPOSE 80 53/udp", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ("VOLUME /a\nVOLUME /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ("WORKDIR x", {"WorkingDir": "/srv/x"}),
        ("WORKDIR ../a/./b/", {"WorkingDir": "/a/b"}),
        ("WORKDIR //a\nWORKDIR b", {"WorkingDir": "/a/b"}),
        ("WORKDIR /\nWORKDIR ..", {"WorkingDir": "/"}),
        ("USER 5:6", {"User": "5:6"}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
        ("CMD a b", {"Cmd": ["/bin/sh", "-c", "a b"]}),
        ('CMD ["a", "b"]', {"Cmd": ["a", "b"]}),
        ("CMD []", {"Cmd": None}),
        ('ENTRYPOINT ["e"]', {"Entrypoint": ["e"], "Cmd": None}),
        ('CMD ["c"]\nENTRYPOINT ["e"]', {"Entrypoint": ["e"], "Cmd": ["c"]}),
        ('ENTRYPOINT ["e"]\nCMD ["c"]', {"Entrypoint": ["e"], "Cmd": ["c"]}),
        ("ENTRYPOINT []", {"Cmd": None}),
        ('SHELL ["bash", "-ec"]\nCMD a', {"Shell": ["bash", "-ec"], "Cmd": ["bash", "-ec", "a"]}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        (
            "HEALTHCHECK --interval=2s --retries=3 CMD a b",
            {"Healthcheck": {"Test": ["CMD-SHELL", "a b"], "Interval": 2 * 10**9, "Retries": 3}},
        ),
        ('HEALTHCHECK CMD ["a"]', {"Healthcheck": {"Test": ["CMD", "a"]}}),
        ("ONBUILD RUN a\nONBUILD COPY <<E /x\nhi\nE", {"OnBuild": ["RUN a", "COPY <<E /x\nhi\nE"]}),
    ],
)
def test_configurations(text: str, expected: dict[str, Any]) -> None:
    assert changed(text) == expected


def test_documents() -> None:
    state = after("MAINTAINER me")
    assert state.document["author"] == "me"
    assert {"rootfs", "history", "created"} & state.document.keys() == set()
    assert (state.document["os"], state.document["architecture"]) == ("linux", "amd64")
    assert [line["created_by"] for line in state.history] == ["MAINTAINER me"]
    assert BASE["author"] == "somebody", "the base's own is as it was"
    empty = ImageState.scratch(PLATFORM, "seed")
    assert (empty.document["architecture"], empty.document["variant"], empty.image_id) == ("arm64", "v8", "")
    assert empty.environment == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def test_keys_say_all_that_has_gone_in() -> None:
    assert after("ENV X=1\nUSER a").key == after("ENV X=1\nUSER a").key
    keys = [
        *(after(text).key for text in ("ENV X=1", "ENV X=2", "LABEL X=1", "ENV X=1\nENV X=1", "USER 1", "WORKDIR 1")),
        ImageState("sha256:other", BASE, "seed").key,
        ImageState("sha256:base", BASE, "another").key,
    ]
    assert len(set(keys)) == len(keys)
    state = after("USER a")
    before = state.key
    state.now_is("sha256:new")
    assert (state.key, state.image_id, state.history, state.changed) == (before, "sha256:new", [], False)
    assert after("USER b", state).changed


def test_a_stage_goes_on_from_another() -> None:
    first = after('CMD ["c"]')
    second = first.copy()
    assert second.key == first.key
    after('ENTRYPOINT ["e"]\nLABEL a=9', second)
    assert "Cmd" not in second.config, "what another stage has said is a base's"
    assert (first.config["Cmd"], first.config["Labels"]["a"]) == (["c"], "1")
