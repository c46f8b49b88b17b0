"""How fast a container's output goes: into its log, and to an attached client (Python over SPDY, the same for all)."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator

from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.streaming.client import run_command
from runtime.streaming.remote_command import StreamOptions
from tests.bench.subject import LINES, LINES_BYTES, Subject

MEGABYTE = 1_000_000


def log(subject: Subject, times: int) -> Iterator[tuple[str, float]]:
    """Lines of 100 bytes until the container has exited; every line must be in its log."""
    begin = time.perf_counter()
    pod = subject.pod("/bin/sh", "-c", _output(times))
    pod.wait()
    took = time.perf_counter() - begin
    written = LINES_BYTES // 100 * times
    kept = sum(data.count(b"\n") for data in _blocks(pod.log))
    if kept != written:
        raise SystemExit(f"{subject.runtime.name} lost log lines: {kept} of {written} are there")
    yield "log, MB/s", written * 100 / took / MEGABYTE
    pod.end()


def attach(subject: Subject, times: int) -> Iterator[tuple[str, float]]:
    """The same lines to an attached client, from its first byte to its last, with the log beside it."""
    pod = subject.pod("/bin/sh", "-c", f"read go; {_output(times)}", stdin=True)
    request = cri.AttachRequest(container_id=pod.container, stdin=True, stdout=True, stderr=True)
    url = subject.client.runtime.Attach(request).url
    stdin, go = os.pipe()
    output, stdout = os.pipe()
    seen: list[tuple[float, int]] = []

    def read() -> None:
        while data := os.read(output, 1 << 20):
            seen.append((time.perf_counter(), len(data)))

    reader = threading.Thread(target=read)
    reader.start()
    os.write(go, b"go\n")
    options = StreamOptions(stdin=True, stdout=True, stderr=True, tty=False)
    try:
        asyncio.run(run_command(url, options, stdin=stdin, stdout=stdout, stderr=2))
    except CrispError as error:  # containerd closes the connection without a word
        print(f"{subject.runtime.name}: attach: {error.message}", file=sys.stderr)
    finally:
        os.close(stdout)
        reader.join()
        for fd in (stdin, go, output):
            os.close(fd)
    received = sum(size for _, size in seen)
    yield "attach, MB/s", received / (seen[-1][0] - seen[0][0]) / MEGABYTE
    yield "of it lost at the end, KB", (LINES_BYTES // 100 * 100 * times - received) / 1000
    pod.wait()
    pod.end()


def _output(times: int) -> str:
    return f"i=0; while [ $i -lt {times} ]; do cat {LINES}; i=$((i+1)); done"


def _blocks(path: os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            yield data
