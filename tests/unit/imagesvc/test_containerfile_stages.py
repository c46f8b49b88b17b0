"""Which variables are seen where, and which stage needs which."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.instructions import Containerfile, Expose, Workdir
from imagesvc.containerfile.parser import parse
from imagesvc.containerfile.scopes import Platforms, Scope, unused
from imagesvc.containerfile.stages import Graph
from imagesvc.platforms import Platform
from proto.errors import CrispError

PLATFORMS = Platforms(Platform("linux", "amd64"), Platform("linux", "arm64", "v8"))


def read(text: str) -> Containerfile:
    return parse(text.encode(), "F")


def walk(text: str, given: dict[str, str] | None = None, environment: tuple[str, ...] = ()) -> Scope:
    """The scope at the end of the first stage."""
    file = read(text)
    scope = Scope.of_globals(file, given or {}, PLATFORMS).for_stage(environment)
    for step in file.stages[0].instructions:
        scope.enter(step)
    return scope


def graph(text: str, given: dict[str, str] | None = None) -> Graph:
    file = read(text)
    scope = Scope.of_globals(file, given or {}, PLATFORMS)
    return Graph(file, [scope.expand(stage.base) for stage in file.stages])


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("FROM a\nARG x", {}, {}),
        ("FROM a\nARG x", {"x": "1"}, {"x": "1"}),
        ("FROM a\nARG x=2", {"x": "1"}, {"x": "1"}),
        ("FROM a\nARG x=2", {}, {"x": "2"}),
        ("FROM a", {"x": "1"}, {}),
        ("ARG x=3\nFROM a", {}, {}),
        ("ARG x=3\nFROM a\nARG x", {}, {"x": "3"}),
        ("ARG x=3\nFROM a\nARG x", {"x": "1"}, {"x": "1"}),
        ("ARG x=3\nFROM a\nARG x=4", {}, {"x": "4"}),
        ("ARG x\nARG y=${x:-5}\nFROM a\nARG y", {}, {"y": "5"}),
        ("FROM a\nARG x=1\nARG y=$x", {}, {"x": "1", "y": "1"}),
        ("FROM a\nARG x=1 y=$x", {}, {"x": "1", "y": ""}),
        ("FROM a\nARG x=1\nENV x=2", {}, {}),
        ("FROM a\nENV x=2\nARG x=1", {"x": "3"}, {}),
        ("FROM a\nARG TARGETARCH\nARG BUILDPLATFORM TARGETVARIANT BUILDVARIANT", {}, None),
    ],
)
def test_arguments(text: str, given: dict[str, str], expected: dict[str, str] | None) -> None:
    if expected is None:
        expected = {"TARGETARCH": "arm64", "BUILDPLATFORM": "linux/amd64", "TARGETVARIANT": "v8", "BUILDVARIANT": ""}
    assert walk(text, given).arguments == expected


def test_env_goes_before_arg() -> None:
    scope = walk("FROM a\nARG v=1\nENV w=$v v=${v:-9}\nARG w=7", {"v": "2"}, ("base=x", "v=3", "odd"))
    assert scope.environment == {"base": "x", "odd": "", "w": "3", "v": "3"}
    assert scope.arguments == {}
    assert scope.variables["w"] == "3"
    with pytest.raises(ContainerfileError, match="F:3: ENV: '' cannot be the name of a variable"):
        walk("FROM a\nARG e=\nENV $e=1")


def test_instructions_see_what_stands_above_them() -> None:
    file = read("FROM a\nEXPOSE ${p:-1}\nARG p=2\nEXPOSE $p\nENV p=3\nEXPOSE $p\nWORKDIR /$p")
    scope = Scope.of_globals(file, {}, PLATFORMS).for_stage({})
    found = [scope.enter(step) for step in file.stages[0].instructions]
    assert [step.ports for step in found if isinstance(step, Expose)] == [("1/tcp",), ("2/tcp",), ("3/tcp",)]
    assert [step.path for step in found if isinstance(step, Workdir)] == ["/3"]


def test_from_lines_see_global_arguments() -> None:
    file = read("ARG V=1\nARG B=debian:$V\nFROM --platform=$BUILDPLATFORM $B AS b\nARG V\nFROM b-$TARGETARCH:$V")
    scope = Scope.of_globals(file, {"V": "12"}, PLATFORMS)
    bases = [scope.expand(stage.base) for stage in file.stages]
    assert [(base.image, base.platform) for base in bases] == [("debian:12", "linux/amd64"), ("b-arm64:12", "")]
    with pytest.raises(ContainerfileError, match="F:1: FROM: its value is empty"):
        graph("FROM $none")


def test_the_target_stage_is_told() -> None:
    file = read("FROM a\nARG TARGETSTAGE")
    for target, expected in (("", "default"), ("test", "test")):
        scope = Scope.of_globals(file, {}, PLATFORMS, target).for_stage({})
        scope.enter(file.stages[0].instructions[0])
        assert scope.arguments == {"TARGETSTAGE": expected}


def test_stages_inherit_arguments() -> None:
    file = read("FROM a AS one\nARG x=1\nENV y=2\nFROM one\nRUN true")
    whole = Scope.of_globals(file, {}, PLATFORMS)
    parent = whole.for_stage({})
    for step in file.stages[0].instructions:
        parent.enter(step)
    child = whole.for_stage(parent.environment, parent)
    assert child.variables == {"x": "1", "y": "2"}
    assert whole.for_stage({}).variables == {}


def test_proxies() -> None:
    given = {"HTTP_PROXY": "http://p", "no_proxy": "x", "other": "1"}
    assert walk("FROM a\nARG other", given).proxies == {"HTTP_PROXY": "http://p", "no_proxy": "x"}
    declared = walk("FROM a\nARG HTTP_PROXY", given)
    assert declared.proxies == {"no_proxy": "x"}
    assert declared.arguments == {"HTTP_PROXY": "http://p"}


def test_arguments_that_nothing_takes() -> None:
    file = read("ARG a\nFROM x\nARG b=1\nFROM y\nARG c")
    given = dict.fromkeys(("a", "b", "c", "d", "https_proxy", "SOURCE_DATE_EPOCH", "BUILDKIT_INLINE_CACHE"), "1")
    assert unused(file, given) == ["d"]


STAGES = """
FROM debian AS base
FROM base AS build
RUN make
FROM base AS test
COPY --from=build /a /a
RUN --mount=from=tools,target=/t check
FROM alpine AS tools
FROM scratch
COPY --from=Build /a /
COPY --from=nginx:1 /b /
COPY --from=1 /c /
"""


def test_what_is_needed() -> None:
    found = graph(STAGES)
    assert [found.base(index) for index in range(5)] == ["debian", 0, 0, "alpine", "scratch"]
    assert [set(found.dependencies(index)) for index in range(5)] == [set(), {0}, {0, 1, 3}, set(), {1}]
    assert [found.images(index) for index in range(5)] == [("debian",), (), (), ("alpine",), ("nginx:1",)]
    assert found.needed(4) == [0, 1, 4]
    assert found.needed(3) == [3]
    assert found.needed(2) == [0, 1, 3, 2]
    assert [found.find(target) for target in ("", "test", "TEST", "0")] == [4, 2, 2, 0]
    with pytest.raises(CrispError, match="F has no stage 'tset'; there is base, build, test, tools"):
        found.find("tset")


def test_a_stage_may_be_called_like_its_image() -> None:
    found = graph("FROM debian AS debian\nFROM debian")
    assert [found.base(0), found.base(1)] == ["debian", 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM a AS b\nCOPY --from=b / /", "F:2: COPY: a stage cannot take files from itself"),
        ("FROM a\nCOPY --from=0 / /", "F:2: COPY: a stage cannot take files from itself"),
        ("FROM a\nCOPY --from=1 / /", "F:2: COPY: there is no stage 1: they are 0 to 0"),
        ("FROM a AS b\nCOPY --from=c / /\nFROM b AS c", "F:1: FROM: the stage needs itself, by way of others"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ContainerfileError) as caught:
        graph(text)
    assert caught.value.message.startswith(said)


@given(st.integers(0, 2**32))
def test_each_stage_comes_after_what_it_needs(seed: int) -> None:
    source = random.Random(seed)
    count = source.randint(1, 8)
    lines = []
    for index in range(count):
        lines.append(f"FROM {f's{source.randrange(index)}' if index and source.random() < 0.5 else 'image'} AS s{index}")
        lines += [f"COPY --from=s{source.randrange(index)} /a /b" for _ in range(source.randint(0, 2)) if index]
    found = graph("\n".join(lines))
    for index in range(count):
        order = found.needed(index)
        assert order[-1] == index
        assert len(order) == len(set(order))
        for place, stage in enumerate(order):
            assert found.dependencies(stage) <= set(order[:place])


def test_many_stages() -> None:
    """Each is looked at once, and not once for each of the others."""
    count = 10_000
    stages = "".join(f"FROM s{number} AS s{number + 1}\n" for number in range(count))
    found = parse(f"FROM scratch AS s0\n{stages}".encode(), "F")
    graph = Graph(found, [stage.base for stage in found.stages])
    assert len(graph.needed(count)) == count + 1


def test_run_mounts_of_stages() -> None:
    found = graph("FROM a AS b\nFROM c\nRUN --mount=from=b,target=/x --mount=type=cache,from=0,target=/y true")
    assert found.dependencies(1) == {0}
