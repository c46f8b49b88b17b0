"""shim/layer_mounts.py: one mount for a layer's file, shared by all who use it, in a namespace of its own."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagesvc.erofs import sample
from kernel import mounts, namespaces, syscalls
from shim import layer_mounts, rootfs
from tests.harness import layer_files


class Lab:
    """A directory of layers and a place for the namespace; what is called runs in a process of its own, as in a shim."""

    def __init__(self, base: Path) -> None:
        self.layers, self.place = base / "layers", str(base / "mounts")
        self.layers.mkdir()
        self.base = base

    def layer(self, name: str, **files: str) -> str:
        [(file, text)] = files.items()
        path = self.layers / f"{name}.erofs"
        path.write_bytes(sample.image(file, text.encode()))
        return str(path)

    def run(self, call: Callable[[], Any]) -> Any:
        """What `call` returns, through JSON; its failure is raised here."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                answer = {"ok": call()}
            except BaseException as error:
                answer = {"error": repr(error)}
            try:
                os.write(writer, json.dumps(answer).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as stream:
            answer = json.loads(stream.read())
        os.waitpid(pid, 0)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def container(self, *layers: str, then: Callable[[dict[str, str]], Any] = lambda places: None) -> Any:
        """Attaches clones as a shim's child does, and goes on with `then`."""

        def call() -> Any:
            detached = layer_mounts.clones(self.place, layers)
            rootfs.enter_private_namespace()
            # As below the bundles: a private mount.
            mounts.ensure_private_mount(str(self.base))
            return then(layer_mounts.attach(str(self.base / "bundle"), detached))

        return self.run(call)

    @contextmanager
    def running(self, *layers: str) -> Iterator[subprocess.Popen[str]]:
        """A container that stays: it answers each path below its first layer with the device and the text of that file."""
        code = (
            "import os, sys; from pathlib import Path; from shim import layer_mounts, rootfs; from kernel import mounts\n"
            f"detached = layer_mounts.clones({self.place!r}, {list(layers)!r})\n"
            f"rootfs.enter_private_namespace(); mounts.ensure_private_mount({str(self.base)!r})\n"
            f"places = layer_mounts.attach({str(self.base / 'bundle')!r}, detached)\n"
            "print('ready', flush=True)\n"
            f"for line in sys.stdin:\n    path = Path(places[{layers[0]!r}], line.strip())\n"
            "    print(os.stat(path).st_dev, path.read_text(), flush=True)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == "ready\n"
            yield process
            process.stdin.close()

    def mounted(self) -> list[int]:
        """Inode numbers of the files that are mounted in the namespace."""

        def call() -> list[int]:
            namespaces.join(os.path.join(self.place, "namespace"), "mnt")
            return sorted(int(name) for name in os.listdir("/") if name != "files")

        return list(self.run(call))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    layer_files.need(tmp_path)
    made = Lab(tmp_path)
    yield made
    mounts.detach_all(made.place)
    assert mounts.below(str(tmp_path)) == []


def ask(container: subprocess.Popen[str], path: str) -> str:
    assert container.stdin is not None
    assert container.stdout is not None
    print(path, file=container.stdin, flush=True)
    return container.stdout.readline()


def device_of(places: dict[str, str]) -> list[int]:
    return [os.stat(place).st_dev for place in places.values()]


def test_all_share_one_mount(lab: Lab) -> None:
    """One super block, and so one page cache, however many containers there are."""
    layer = lab.layer("one", file="text")

    with lab.running(layer) as first, lab.running(layer) as second:
        answers = [ask(first, "file"), ask(second, "file")]
    assert answers[0] == answers[1]
    assert answers[0].split()[1] == "text"
    assert lab.mounted() == [os.stat(layer).st_ino]


def test_two_at_once(lab: Lab) -> None:
    layers = [lab.layer(f"layer{number}", file=str(number)) for number in range(8)]
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(lab.container(*layers, then=device_of))) for _number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert all(devices == found[0] for devices in found)
    assert lab.mounted() == sorted(os.stat(layer).st_ino for layer in layers)


def test_the_host_sees_none_of_them(lab: Lab) -> None:
    layer = lab.layer("one", file="text")
    lab.container(layer)
    assert sorted(entry.mount_point for entry in mounts.below(str(lab.base))) == [
        os.fsencode(lab.place),
        os.fsencode(f"{lab.place}/namespace"),
    ]
    assert mounts.holding(lab.place).propagation == "private"


def test_a_removed_layer_is_unmounted_and_who_uses_it_keeps_it(lab: Lab) -> None:
    gone, kept = lab.layer("gone", file="text"), lab.layer("kept", file="text")

    with lab.running(gone, kept) as container:
        lab.run(lambda: layer_mounts.unmount(lab.place, [gone]))
        os.unlink(gone)
        assert ask(container, "file").split()[1] == "text"
    assert lab.mounted() == [os.stat(kept).st_ino]


def test_another_file_in_its_place_is_mounted_anew(lab: Lab) -> None:
    """A layer that was found damaged comes again under its name, while the old one is still being removed."""
    layer = lab.layer("layer", file="old")
    lab.container(layer)
    os.rename(layer, lab.layers / "aside")
    os.rename(lab.layer("other", file="new"), layer)
    assert lab.container(layer, then=lambda places: Path(places[layer], "file").read_text()) == "new"


def test_what_was_left_is_unmounted_at_the_start(lab: Lab) -> None:
    gone, kept = lab.layer("gone", file="text"), lab.layer("kept", file="text")
    assert lab.run(lambda: layer_mounts.reconcile(lab.place, str(lab.layers))) == 0
    lab.container(gone, kept)
    number = os.stat(gone).st_ino
    os.unlink(gone)
    assert lab.mounted() == sorted([number, os.stat(kept).st_ino])
    assert lab.run(lambda: layer_mounts.reconcile(lab.place, str(lab.layers))) == 1
    assert lab.mounted() == [os.stat(kept).st_ino]


def test_another_disk_in_the_directorys_place(lab: Lab) -> None:
    """The namespace shows the directory that was there when it was made: one that came later is not looked for in it."""
    layer = lab.layer("layer", file="old")
    lab.container(layer)
    os.rename(lab.layers, lab.base / "unmounted")
    lab.layers.mkdir()
    layer = lab.layer("again", file="new")
    assert lab.container(layer, then=lambda places: Path(places[layer], "file").read_text()) == "new"
    assert lab.mounted() == [os.stat(layer).st_ino]


@pytest.mark.parametrize("kind", ["uts", "mnt"])
def test_another_namespace_in_its_place(lab: Lab, kind: str) -> None:
    """It is made anew."""
    layer = lab.layer("layer", file="text")
    lab.container(layer)
    pinned = os.path.join(lab.place, "namespace")
    namespaces.unpin(pinned)

    def other() -> None:
        if kind == "mnt":
            layer_mounts._make(lab.place, str(lab.base), os.open("/proc/self/ns/mnt", os.O_RDONLY))
        else:
            syscalls.unshare(namespaces.FLAGS[kind])
            namespaces.pin_open(pinned, os.open(f"/proc/self/ns/{kind}", os.O_RDONLY))

    lab.run(other)
    assert lab.container(layer, then=lambda places: os.listdir(places[layer])) == ["file"]
    assert lab.mounted() == [os.stat(layer).st_ino]


def test_killed_between_its_steps(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever whoever was killed has left, the next one goes on."""
    layer = lab.layer("layer", file="text")
    for name in ("unshare", "pivot_root", "move_mount", "open_tree", "mount"):

        def die(*_arguments: object, **_keywords: object) -> None:
            os._exit(9)

        with monkeypatch.context() as patched, pytest.raises(ValueError, match="Expecting value"):
            patched.setattr(syscalls, name, die)
            lab.container(layer)
        assert lab.container(layer, then=lambda places: os.listdir(places[layer])) == ["file"]
        mounts.detach_all(lab.place)


def test_reading_without_sharing(lab: Lab) -> None:
    """Workers read a layer of either kind by a descriptor, and leave no mount."""
    layer = lab.layer("layer", file="text")

    def read() -> list[Any]:
        directory = layer_mounts.open_layer(layer)
        file = os.open("file", os.O_RDONLY, dir_fd=directory)
        return [os.listdir(directory), os.read(file, 9).decode()]

    assert lab.run(read) == [["file"], "text"]
    plain = layer_mounts.open_layer(str(lab.layers))
    assert os.listdir(plain) == ["layer.erofs"]
    os.close(plain)


def test_a_file_that_is_no_image(lab: Lab) -> None:
    """It is told, and nothing is half done."""
    layer = lab.layers / "bad.erofs"
    layer.write_bytes(bytes(8192))
    with pytest.raises(RuntimeError, match=r"erofs: .*Invalid argument"):
        lab.container(str(layer))
    assert lab.container(good := lab.layer("good", file="x"), then=lambda places: os.listdir(places[good])) == ["file"]


def test_a_namespace_that_seems_older_than_the_present_one_is_made_elsewhere(lab: Lab) -> None:
    """Whichever processor the present namespace was made on, and whichever this is: Linux 6.18 numbers them in batches."""
    layer = lab.layer("a", greeting="hello")
    processors = sorted(os.sched_getaffinity(0))

    def call(place: str, before: int, now: int) -> bool:
        os.sched_setaffinity(0, {before})
        syscalls.unshare(syscalls.CLONE_NEWNS)
        mounts.make_private("/", recursive=True)
        os.sched_setaffinity(0, {now})
        os.sched_setaffinity(0, processors)  # whereupon it stays where it is
        for mount in layer_mounts.clones(place, [layer]).values():
            os.close(mount)
        return sorted(os.sched_getaffinity(0)) == processors

    for before, now in itertools.product(processors, repeat=2):
        place = str(lab.base / f"mounts-{before}-{now}")
        assert lab.run(functools.partial(call, place, before, now))


def test_a_namespace_that_is_refused_everywhere_is_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lab.layer("a", greeting="hello")
    tried: list[set[int]] = []

    def refuse(_path: str, _fd: int) -> None:
        tried.append(os.sched_getaffinity(0))
        raise OSError(errno.EINVAL, "Invalid argument")

    def call() -> list[bool]:
        mine = os.sched_getaffinity(0)
        monkeypatch.setattr(namespaces, "pin_open", refuse)
        with pytest.raises(OSError, match="Invalid argument"):
            layer_mounts.clones(lab.place, [layer])
        return [tried == [mine, *({processor} for processor in sorted(mine, reverse=True))], os.sched_getaffinity(0) == mine]

    assert lab.run(call) == [True, True]
