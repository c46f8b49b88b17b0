"""When unpacking is tried again: for bytes that turned out not to be the blob's, and for nothing else that is bad."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from imagesvc.limits import Limits
from imagesvc.transfer.unpacking import Unpacker
from imagesvc.worker.pool import JobFailed

BAD = JobFailed({"error": "bad", "message": "no tar"})
MISSING = JobFailed({"error": "os", "errno": 2, "message": "gone"})


class Layers:
    """A store that only counts."""

    form = "directory"

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.made = 0

    def new_directory(self) -> str:
        self.made += 1
        return f"new-{self.made}"

    new_file = new_directory

    def stage(self, path: str, _result: Any, _diff_id: str, _chain_id: str) -> str:
        return path

    def remove_directories(self, paths: list[str]) -> None:
        self.removed += paths


def blob(restarts: int = 0) -> Any:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return SimpleNamespace(restarts=restarts, digest="sha256:b", done=done)


def unpacker(monkeypatch: pytest.MonkeyPatch, layers: Layers, *outcomes: Any) -> Unpacker:
    made = Unpacker(layers, None, Limits())  # type: ignore[arg-type]
    turns = iter(outcomes)

    async def run(incoming: Any, *_: Any) -> dict[str, Any]:
        outcome, restarted = next(turns)
        incoming.restarts += restarted
        if isinstance(outcome, JobFailed):
            raise outcome
        return {"diff_id": outcome}

    monkeypatch.setattr(made, "_run", run)
    return made


async def test_bad_bytes_that_came_again_are_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers()
    work = unpacker(monkeypatch, layers, (BAD, 1), ("sha256:d", 0))
    made: Any = await work.unpack(blob(), "sha256:d", "sha256:c", None, lambda _: None)
    assert (made, layers.removed) == ("new-2", ["new-1"])


async def test_a_layer_that_was_renamed_meanwhile_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers()
    work = unpacker(monkeypatch, layers, (MISSING, 0), ("sha256:d", 0))
    made: Any = await work.unpack(blob(), "sha256:d", "sha256:c", None, lambda _: None)
    assert (made, layers.removed) == ("new-2", ["new-1"])


@pytest.mark.parametrize("outcome", [BAD, "sha256:another"])
async def test_bad_bytes_that_are_the_blobs_are_told(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    layers = Layers()
    work = unpacker(monkeypatch, layers, (outcome, 0), ("sha256:d", 0))
    with pytest.raises(Exception, match=r"no tar|unpacks to sha256:another"):
        await work.unpack(blob(), "sha256:d", "sha256:c", None, lambda _: None)
    assert layers.removed == ["new-1"]
