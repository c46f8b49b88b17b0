"""What an image is going to be, instruction by instruction."""

from __future__ import annotations

from typing import Any

from imagesvc.containerfile.parser import parse
from imagesvc.containerfile.scopes import Platforms, Scope
from imagesvc.platforms import Platform
from runtime.build.image_state import ImageState

PLATFORM = Platform("linux", "amd64")


def state_of(text: str, base: dict[str, Any] | None = None) -> ImageState:
    """After all instructions; of a base's configuration, or of scratch."""
    containerfile = parse(f"FROM scratch\n{text}".encode(), "Containerfile")
    state = ImageState("sha256:base", {"config": base}, "") if base is not None else ImageState.scratch(PLATFORM, "")
    scope = Scope.of_globals(containerfile, {}, Platforms(PLATFORM, PLATFORM)).for_stage(state.environment)
    for raw in containerfile.stages[0].instructions:
        step = scope.enter(raw)
        assert state.enter(step, scope.environment)
    return state


EVERYTHING = """
ENV A=b C="d e"
ENV A=f
LABEL one=1 two=2
LABEL one=3
WORKDIR /srv
WORKDIR www
USER app:more
EXPOSE 80 53/udp
VOLUME /data
VOLUME ["/more"]
SHELL ["/bin/bash", "-c"]
CMD run it
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=30s --retries=3 CMD curl localhost
ONBUILD RUN make
MAINTAINER somebody
"""


def test_everything_stands_where_docker_has_it() -> None:
    state = state_of(EVERYTHING)
    assert state.document["author"] == "somebody"
    assert (state.document["os"], state.document["architecture"]) == ("linux", "amd64")
    environment = state.config.pop("Env")
    assert environment[0].startswith("PATH=")
    assert environment[1:] == ["A=f", "C=d e"]
    assert state.config == {
        "Labels": {"one": "3", "two": "2"},
        "WorkingDir": "/srv/www",
        "User": "app:more",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}, "/more": {}},
        "Shell": ["/bin/bash", "-c"],
        "Cmd": ["/bin/bash", "-c", "run it"],
        "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD-SHELL", "curl localhost"], "Interval": 30_000_000_000, "Retries": 3},
        "OnBuild": ["RUN make"],
    }
    assert state.config is state.document["config"]
    assert [line["created_by"] for line in state.history[:2]] == ['ENV A=b C="d e"', "ENV A=f"]


def test_an_entrypoint_takes_away_the_arguments_of_another_program() -> None:
    base = {"Entrypoint": ["/old"], "Cmd": ["its argument"]}
    assert state_of('ENTRYPOINT ["/new"]\n', base).config == {"Entrypoint": ["/new"]}
    assert state_of('CMD ["mine"]\nENTRYPOINT ["/new"]\n', base).config == {"Entrypoint": ["/new"], "Cmd": ["mine"]}
    assert state_of("ENTRYPOINT []\n", base).config == {}
    assert state_of("HEALTHCHECK NONE\n", {}).config == {"Healthcheck": {"Test": ["NONE"]}}


def test_the_key_is_that_of_all_that_was_done() -> None:
    """And of nothing else: not of where it stands, nor of its comments."""
    first = state_of("ENV A=b\nLABEL c=d\n")
    assert state_of("# said\n\nENV A=b\nLABEL c=d\n").key == first.key
    others = ["ENV A=c\nLABEL c=d\n", "LABEL c=d\nENV A=b\n", "ENV A=b\n", "ENV A=b\nLABEL c=e\n"]
    assert len({first.key, *(state_of(text).key for text in others)}) == 5
    assert ImageState("sha256:1", {}, "1").key != ImageState("sha256:1", {}, "2").key


def test_a_stage_goes_on_from_another_without_changing_it() -> None:
    first = state_of("CMD x\nENV A=b\n")
    second = first.copy()
    assert (second.key, second.history, second.fresh_cmd) == (first.key, first.history, False)
    second.config["User"] = "1"
    assert "User" not in first.config
