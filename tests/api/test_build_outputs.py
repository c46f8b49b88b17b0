"""What comes out of `crisp build`: the same image of the same moment, one layer of all, archives and directories."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from runtime.cli import build_output
from tests.api.building import NAME, build, config, context, document, in_image
from tests.api.test_command import IMAGE, command, crisp
from tests.harness.kubelet import Kubelet

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("no_images_stay")]


def test_the_same_moment_makes_the_same_image(kubelet: Kubelet, tmp_path: Path) -> None:
    place = str(context(tmp_path, "FROM BASE\nRUN date > /dev/null; echo x > /x\nCOPY file /\nCMD x\n", file="text"))
    made = set()
    for moment in (1, 2):
        os.utime(tmp_path / "file", (2_000_000_000 + moment, 2_000_000_000 + moment))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        made.add(build(kubelet, "--no-cache", "-q", place, env=environment)[0])
    assert len(made) == 1


SQUASHED = """
FROM BASE AS below
RUN mkdir /gone && echo x > /gone/x && echo kept > /kept
FROM below
RUN rm -r /gone /etc/group && echo changed > /kept && ln /kept /link && chmod 700 /var
ENV A=b
RUN rm -r /home && mkdir /home && echo y > /home/y
CMD ["cat", "/kept"]
"""


def test_one_layer_of_all_that_is_new(kubelet: Kubelet, tmp_path: Path) -> None:
    place = str(context(tmp_path, SQUASHED))
    names = ("localhost/built-layers:1", "localhost/built-squashed:1")
    for name, words in zip(names, ([], ["--squash"]), strict=True):
        build(kubelet, "-t", name, *words, place)
    system = "! -path '/dev*' ! -path '/proc*' ! -path '/sys*' ! -path '/etc*'"
    look = f"find / -xdev -mindepth 1 {system} | sort | xargs stat -c '%n %f %u %g %Y'; stat -c %h /kept; cat /kept /home/*"
    layers, squashed = (in_image(kubelet, name, "/bin/sh", "-c", look) for name in names)
    assert squashed == layers
    assert "/gone" not in squashed
    of_layers, of_squashed = (document(kubelet, name) for name in names)
    assert of_squashed["config"] == of_layers["config"]
    assert [line["created_by"] for line in of_squashed["history"]] == [line["created_by"] for line in of_layers["history"]]
    counts = [sum(not line.get("empty_layer") for line in one["history"]) for one in (of_layers, of_squashed)]
    assert counts == [4, 2], "the base, and three or one"


def test_one_layer_of_nothing(kubelet: Kubelet, tmp_path: Path) -> None:
    """The base as it is, or with another configuration alone; it is a plain directory, which has no history yet."""
    out, _ = build(kubelet, "--squash", "-q", str(context(tmp_path, "FROM BASE\n")))
    assert out.strip() == kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE))).image.id
    place = str(context(tmp_path, 'FROM BASE\nENV A=b\nCMD ["x"]\n'))
    found = []
    for words in ([], ["--squash"], ["--squash", "--build-arg", "SOURCE_DATE_EPOCH=1"]):
        build(kubelet, "-t", NAME, *words, place)
        told = [(line["created_by"], line.get("empty_layer", False)) for line in document(kubelet, NAME)["history"]]
        found.append((told, config(kubelet, NAME)))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == [("crisp: a plain directory", False), ("ENV A=b", True), ('CMD ["x"]', True)]


def test_outputs(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    place = str(context(tmp_path / "context", "FROM scratch\nCOPY --chown=7:8 d /d/\n"))
    (tmp_path / "context/d").mkdir()
    (tmp_path / "context/d/file").write_text("a file")
    (tmp_path / "context/d/link").symlink_to("/etc/passwd")
    build(kubelet, "-o", f"{tmp_path}/out", place)
    copied = tmp_path / "out/d/file"
    assert (copied.read_text(), copied.stat().st_uid) == ("a file", 0)
    assert os.readlink(tmp_path / "out/d/link") == "/etc/passwd"
    done = subprocess.run(command(kubelet, "build", "-o", "-", place), check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = {member.name: member for member in archive}
    assert sorted(members) == ["d", "d/file", "d/link"]
    assert (members["d/file"].uid, members["d/link"].linkname) == (7, "/etc/passwd")
    done = subprocess.run(command(kubelet, "build", "-t", NAME, "-o", "type=docker", place), check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert [one["RepoTags"] for one in json.load(manifest)] == [[NAME]]


@pytest.mark.parametrize("kind", ["oci", "tar"])
def test_an_output_that_is_there(kubelet: Kubelet, tmp_path: Path, kind: str) -> None:
    """A file is replaced, what a link leads to is written; the standard output is the command's and not the daemon's."""
    (tmp_path / "context").mkdir()
    words = ["build", "-q", str(context(tmp_path / "context", "FROM scratch\nCOPY file /\n", file="text")), "-o"]
    (tmp_path / "linked").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "linked")
    (tmp_path / "file").write_text("old")
    for place in ("out", "file"):
        assert crisp(kubelet, *words, f"type={kind},dest={tmp_path}/{place}").returncode == 0
        with tarfile.open(tmp_path / place) as archive:
            assert len(archive.getnames()) > 0
    assert (tmp_path / "out").is_symlink()
    piped = crisp(kubelet, *words, f"type={kind},dest=/dev/stdout")
    assert piped.stdout.startswith((tmp_path / "file").read_bytes()[:100]), piped
    assert os.path.islink("/dev/stdout")
    full = crisp(kubelet, *words, f"type={kind},dest=/dev/full")
    assert (full.returncode, full.stderr.count(b"\n")) == (1, 1), full
    assert sorted(os.listdir(tmp_path)) == ["context", "file", "linked", "out"]


def test_capabilities_and_attributes_are_in_an_archive(tmp_path: Path) -> None:
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # bytes, and no text
    (tmp_path / "file").write_text("")
    os.setxattr(tmp_path / "file", "security.capability", capability)
    os.setxattr(tmp_path / "file", "user.word", b"value\xff")
    (tmp_path / "link").symlink_to("nowhere")
    data = io.BytesIO()
    build_output._tar(str(tmp_path), data)
    (tmp_path / "out").mkdir()
    words = ["tar", "--xattrs", "--xattrs-include=*", "-xf", "-", "-C", str(tmp_path / "out")]
    subprocess.run(words, input=data.getvalue(), check=True)
    assert os.getxattr(tmp_path / "out/file", "security.capability") == os.getxattr(tmp_path / "file", "security.capability")
    assert os.getxattr(tmp_path / "out/file", "user.word") == b"value\xff"
