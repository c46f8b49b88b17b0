"""The CRI log format without I/O: bytes of a stream in, log lines out.

    2016-10-06T00:17:09.669794202Z stdout P log content 1
    2016-10-06T00:17:09.669794203Z stdout F log content 2

The format is the kubelet's (kubernetes, pkg/kubelet/kuberuntime/logs: RFC3339Nano, stream, tag, content). `P` marks a
piece whose line goes on, `F` the end of a line. A line longer than `max_line` bytes is split; a line that arrives in
several reads is not: its beginning waits here for its end. What is left when the stream ends has no newline, so it is `P`,
as in containerd and CRI-O: the kubelet adds one to every `F` and to nothing else.

Speed comes from treating a read as a whole: one time stamp, one `replace` for all of its lines.
"""

from __future__ import annotations

import time

MAX_LINE = 16384  # bytes, without the prefix


class Clock:
    """RFC3339Nano in UTC; the calendar part is computed once a second."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = b""

    def stamp(self, now: int) -> bytes:
        """The time stamp of `now`, in ns since the epoch."""
        second, nanoseconds = divmod(now, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second)).encode()
        return self._prefix + b"%09dZ" % nanoseconds


class Formatter:
    """One stream of one container. `feed` it what was read; `finish` at the end of file."""

    __slots__ = ("_clock", "_max_line", "_name", "_rest")

    def __init__(self, name: bytes, clock: Clock, max_line: int = MAX_LINE) -> None:
        self._name = name
        self._clock = clock
        self._max_line = max_line
        self._rest = b""

    def feed(self, data: bytes, now: int) -> bytes:
        """Log lines for `data`, read at `now` (ns); what has no newline yet is kept."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n") + 1
        self._rest = data[end:]
        stamp = self._clock.stamp(now) + b" " + self._name
        out = b""
        if end:
            if self._has_long_line(data, end):
                out = b"".join(self._split(line, stamp) for line in data[: end - 1].split(b"\n"))
            else:
                full = stamp + b" F "
                out = full + data[: end - 1].replace(b"\n", b"\n" + full) + b"\n"
        if len(self._rest) > self._max_line:
            out += self._shed(stamp)
        return out

    def finish(self, now: int) -> bytes:
        """The log line of what was left without a newline, if anything was."""
        rest, self._rest = self._rest, b""
        return self._clock.stamp(now) + b" " + self._name + b" P " + rest + b"\n" if rest else b""

    def _has_long_line(self, data: bytes, end: int) -> bool:
        """Jump from newline to newline, as far as a line may reach: a few steps for thousands of lines."""
        position, reach = 0, self._max_line + 1
        while position < end:
            newline = data.rfind(b"\n", position, position + reach)
            if newline < 0:
                return True
            position = newline + 1
        return False

    def _split(self, line: bytes, stamp: bytes) -> bytes:
        """One whole line in as many pieces as it takes."""
        size = self._max_line
        starts = range(0, max(len(line), 1), size)
        last = starts[-1]
        return b"".join(
            stamp + (b" F " if start == last else b" P ") + line[start : start + size] + b"\n" for start in starts
        )

    def _shed(self, stamp: bytes) -> bytes:
        """Write the full pieces of a line whose end is not here; keep at least a byte for its end."""
        size = self._max_line
        count = (len(self._rest) - 1) // size
        head, self._rest = self._rest[: count * size], self._rest[count * size :]
        return b"".join(stamp + b" P " + head[i : i + size] + b"\n" for i in range(0, len(head), size))
