"""runtime/host/layer_form.py: what `images.layers` makes new layers."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from proto.errors import Code, CrispError
from runtime.cli.check import layers_line
from runtime.host import layer_form
from runtime.paths import Paths

WHY = "this kernel has no EROFS"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "lib", tmp_path / "run")


def server(answer: dict[str, str] | CrispError) -> AsyncMock:
    made = AsyncMock()
    made.run_job.side_effect = [answer]
    return made


async def test_directories_try_nothing(paths: Paths) -> None:
    forks = AsyncMock()
    chosen = await layer_form.choose("directories", paths, forks)
    assert chosen.describe() == {"form": "directory", "why": "images.layers says so"}
    assert forks.run_job.await_count == 0


@pytest.mark.parametrize("wanted", ["auto", "erofs"])
async def test_files_where_they_can_be(paths: Paths, wanted: str) -> None:
    forks = server({"error": ""})
    assert (await layer_form.choose(wanted, paths, forks)).describe() == {"form": "erofs"}
    [awaited] = forks.run_job.await_args_list
    assert awaited.args[1]["directory"] == str(paths.root / "layers")


@pytest.mark.parametrize("answer", [{"error": WHY}, CrispError(Code.DEADLINE_EXCEEDED, WHY)])
async def test_files_where_they_cannot_be(paths: Paths, answer: dict[str, str] | CrispError) -> None:
    """`auto` goes on with directories, and says why; who wants files is told at once."""
    assert (await layer_form.choose("auto", paths, server(answer))).describe() == {"form": "directory", "why": WHY}
    with pytest.raises(CrispError, match=f'images.layers = "erofs": {WHY}') as caught:
        await layer_form.choose("erofs", paths, server(answer))
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_what_crisp_check_says() -> None:
    assert layers_line("erofs", "").text == "EROFS files"
    assert layers_line("directory", WHY).text == f"directories: {WHY}"
    assert {layers_line("erofs", "").state, layers_line("directory", WHY).state} == {"ok"}
