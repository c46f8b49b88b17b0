"""Who is meant by what people type, and which lines are the last ones: `crisp` without a daemon."""

from __future__ import annotations

import itertools
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from proto import api_pb2 as cri
from runtime.cli.logs import Line, _after, _begun
from runtime.cli.lookup import Node


def node(pods: list[cri.PodSandbox], containers: list[cri.Container]) -> Node:
    runtime = SimpleNamespace(
        ListPodSandbox=lambda _: cri.ListPodSandboxResponse(items=pods),
        ListContainers=lambda _: cri.ListContainersResponse(containers=containers),
    )
    client: Any = SimpleNamespace(runtime=runtime)
    return Node(client)


def pod(key: str, name: str, created: int = 1) -> cri.PodSandbox:
    return cri.PodSandbox(id=key, metadata=cri.PodSandboxMetadata(name=name, namespace="n"), created_at=created)


def container(key: str, name: str, inside: str, created: int = 1) -> cri.Container:
    return cri.Container(id=key, pod_sandbox_id=inside, metadata=cri.ContainerMetadata(name=name), created_at=created)


def test_a_name_goes_before_the_beginning_of_an_id() -> None:
    found = node([pod("aa11", "p")], [container("abcd12", "x", "aa11"), container("ef34", "abcd", "aa11")])
    assert found.container("abcd").id == "ef34"
    assert found.container("abcd1").id == "abcd12"
    with pytest.raises(SystemExit):
        found.container("a")  # one digit is no beginning


@pytest.mark.parametrize("turned", [False, True])
def test_the_newest_attempt_is_meant(turned: bool) -> None:
    pods = [pod("aa11", "p", 1), pod("bb22", "p", 5)]
    containers = [container("c1", "x", "bb22", 2), container("c2", "x", "bb22", 7), container("c3", "y", "aa11", 9)]
    found = node(pods[::-1], containers[::-1]) if turned else node(pods, containers)
    assert found.pod("p").id == found.pod("n/p").id == "bb22"
    assert found.container("x").id == found.container("p/x").id == found.container("n/p").id == "c2"


def test_a_last_line_has_all_of_its_pieces() -> None:
    def line(stream: bytes, whole: bool, text: bytes) -> Line:
        return Line(b"t", stream, whole, text)

    first = line(b"stdout", True, b"first")
    pieces = [line(b"stdout", False, b"a"), line(b"stdout", False, b"b"), line(b"stdout", True, b"c")]
    other = line(b"stderr", True, b"other")
    lines = [first, pieces[0], other, *pieces[1:]]

    def last(count: int) -> list[Line]:
        return list(_after(_begun(lines) - count, lines))

    assert last(1) == [other]
    assert last(2) == [pieces[0], other, *pieces[1:]]
    assert last(0) == []
    assert last(9) == lines


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    """`crisp logs --tail` goes through it twice instead."""
    pieces = Line(b"t", b"stdout", False, bytes(1000))
    tracemalloc.start()
    count = _begun(itertools.repeat(pieces, 50_000))
    assert sum(len(line.text) for line in _after(count - 1, itertools.repeat(pieces, 50_000))) == 50_000_000
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
