"""Pods that come and go, many at once, while images are pulled and removed, commands run and logs rotated beside them."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet
from tests.images.image_builder import Layout, Member, busybox, directory, tar
from tests.images.registry_server import Registry

TAGS = 4
LINES = 50

COUNTER = "n=0; while true; do n=$((n+1)); echo line $n; [ $((n % 200)) = 0 ] && sleep 0.1; done"
"""A log without end, of which every line can be told."""


class Images:
    """A registry on loopback with a few images that share a layer."""

    def __init__(self, base: Path) -> None:
        self._registry = Registry(base / "registry")
        layout = Layout(base / "layout")
        self.tags = [f"{self._registry.host}/churn/app:{number}" for number in range(TAGS)]
        for tag in self.tags:
            data = [Member(f"data/{n}", os.urandom(20_000)) for n in range(50)]
            layout.image(tag, [busybox(), tar([directory("./"), directory("data/"), *data])])
            layout.push(tag, tag)

    def close(self) -> None:
        self._registry.close()


class Churn:
    """The load on one daemon; `made` are the ids of all containers."""

    def __init__(self, kubelet: Kubelet, images: Images) -> None:
        self.made: set[str] = set()
        self.pulls = 0
        self.execs = 0
        self.rotations = 0
        self._kubelet = kubelet
        self._images = images

    def one_pod(self, number: int) -> None:
        """The whole life of a pod with two containers, of which one ends by itself."""
        pod = self._kubelet.pod()
        script = f"for n in $(seq {LINES}); do echo line $n; done; "
        short = pod.run("/bin/sh", "-c", script + f"exit {number % 256}")
        long = pod.run("/bin/sh", "-c", script + "sleep 1000")
        self.made |= {short.id, long.id}
        assert long.sh("echo hello") == "hello\n"
        status = short.wait()
        assert status.exit_code == number % 256
        assert short.output() == "".join(f"line {n}\n" for n in range(1, LINES + 1))
        if number % 3 == 0:
            long.stop(0)
            long.remove()
        if number % 2 == 0:
            pod.stop()
        pod.remove()

    def run(self, pods: int, at_once: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """So many pods; returns when the last is gone and nothing runs beside any more."""
        witness = self._kubelet.pod()
        logger = witness.run("/bin/sh", "-c", COUNTER)
        self.made.add(logger.id)
        over = threading.Event()
        beside = [
            threading.Thread(target=until, args=(over, work))
            for work in (self._pull, lambda: self._exec(logger), lambda: self._rotate(logger))
        ]
        failures: list[BaseException] = []
        threading.excepthook = lambda raised: failures.append(raised.exc_value or AssertionError("?"))
        for thread in beside:
            thread.start()
        done = itertools.count(1)
        try:
            with ThreadPoolExecutor(at_once) as pool:
                for _ in pool.map(self.one_pod, range(pods)):
                    progress(next(done))
        finally:
            over.set()
            for thread in beside:
                thread.join()
            threading.excepthook = threading.__excepthook__
        assert not failures, failures
        logger.stop(0)
        self._check_log(logger)
        witness.remove()

    def _pull(self) -> None:
        """Pull an image, run it, remove it."""
        tag = self._images.tags[self.pulls % TAGS]
        spec = cri.ImageSpec(image=tag)
        self._kubelet.images.PullImage(cri.PullImageRequest(image=spec))
        pod = self._kubelet.pod()
        container = pod.run("/bin/ls", "/data", config=cri.ContainerConfig(image=spec))
        self.made.add(container.id)
        assert container.wait().exit_code == 0
        pod.remove()
        self._kubelet.images.RemoveImage(cri.RemoveImageRequest(image=spec))
        self.pulls += 1

    def _exec(self, logger: Container) -> None:
        assert logger.sh("echo probe") == "probe\n"
        self.execs += 1

    def _rotate(self, logger: Container) -> None:
        """As the kubelet does: rename, then have the log reopened."""
        path = logger.status().log_path
        os.rename(path, f"{path}.{self.rotations:06}")
        self._kubelet.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=logger.id))
        self.rotations += 1
        time.sleep(0.2)

    def _check_log(self, logger: Container) -> None:
        """No line is lost, none comes twice, over all rotations."""
        path = Path(logger.status().log_path)
        files = [*sorted(path.parent.glob(f"{path.name}.*")), path]
        lines = [line.rpartition(" ")[2] for file in files for line in file.read_text().splitlines()]
        assert lines == [str(n) for n in range(1, len(lines) + 1)]
        for file in files:
            file.unlink()


def until(over: threading.Event, work: Callable[[], Any]) -> None:
    """Repeat the work."""
    while not over.is_set():
        work()
