"""Where the mount points of a RUN are: what links make of a path, none of which leads out of the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.build.run_mounts import MAX_LINKS, settled


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/a/b", "/a/b"),
        ("a//./b/", "/a/b"),
        ("/absent/../b", "/b"),
        ("/../../a", "/a"),
        ("/absolute/x", "/there/x"),
        ("/relative/x", "/x"),
        ("/out/x", "/x"),
        ("/dangling", "/no/where"),
        ("/dangling/../x", "/no/x"),
        ("/twice/x", "/there/x"),
        ("/file/x", "/file/x"),
        ("/", "/"),
    ],
)
def test_a_place_in_a_tree(tmp_path: Path, path: str, place: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for name, target in (
        ("absolute", "/there"),
        ("relative", "../../."),
        ("out", "../../../../.."),
        ("dangling", "/no/./where"),
        ("twice", "relative/absolute"),
    ):
        (tmp_path / name).symlink_to(target)
    assert settled(str(tmp_path), path) == place


def test_links_without_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop/x")
    with pytest.raises(OSError, match="Too many levels"):
        settled(str(tmp_path), "/loop")
    for number in range(MAX_LINKS):
        (tmp_path / f"{number}").symlink_to(f"{number + 1}")
    assert settled(str(tmp_path), "/0/x") == f"/{MAX_LINKS}/x"
