"""Debian's docker-registry on a free loopback port, in a directory of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from tests.harness.host import free_port


class Registry:
    """A running registry; `extra` is appended to its configuration's `auth` and `http` parts as YAML."""

    def __init__(self, directory: Path, auth: str = "", tls: tuple[Path, Path] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        http = [f"http:\n  addr: {self.host}\n"]
        if tls:
            http.append(f"  tls:\n    certificate: {tls[0]}\n    key: {tls[1]}\n")
        config = directory / "config.yml"
        config.write_text(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n"
            f"storage:\n  filesystem:\n    rootdirectory: {directory}/data\n  delete:\n    enabled: true\n"
            + "".join(http)
            + auth
        )
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError("docker-registry did not start") from None
                time.sleep(0.02)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._log.close()
