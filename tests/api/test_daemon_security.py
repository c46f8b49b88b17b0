"""The daemon itself: who can reach its socket and its files, and where secrets must not show up."""

from __future__ import annotations

import grp
import os
import socket
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet

pytestmark = pytest.mark.root

SECRET = "correct-horse-battery-staple"
PUBLIC = 0o077


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for directory in Path(f"/proc/{pid}/task").iterdir():
        for child in (directory / "children").read_text().split():
            found += family(int(child))
    return found


def test_socket_is_roots(kubelet: Kubelet) -> None:
    assert mode(kubelet.daemon.socket) == 0o600
    assert os.stat(kubelet.daemon.socket).st_uid == 0


def test_socket_of_a_group() -> None:
    group = grp.getgrall()[-1]
    daemon = Daemon()
    lines = daemon.config.read_text()
    daemon.config.write_text(f'socket_group = "{group.gr_name}"\n{lines}')
    # Its network would meet that of the tests' other daemon; the socket is there before any pod.
    with daemon.config.open("a") as file:
        file.write('[network]\nbridge = "crisptsg0"\ntable = "crisptsg"\nsubnets = ["10.214.0.0/16"]\n')
    try:
        daemon.start()
        found = os.stat(daemon.socket)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
    finally:
        daemon.destroy()


def test_others_read_nothing_of_the_daemons(kubelet: Kubelet) -> None:
    """State and layers are behind 0700; /run/crisp can be passed, for users of a user namespace must, but not read."""
    wanted = cri.ContainerConfig(envs=[cri.KeyValue(key="PASSWORD", value=SECRET.encode())])
    kubelet.pod().run("/bin/sleep", "100", config=wanted)
    assert mode(kubelet.daemon.root) == 0o700
    assert mode(kubelet.daemon.state) & PUBLIC == 0o011
    for directory, directories, files in os.walk(kubelet.daemon.state / "containers"):
        directories[:] = [name for name in directories if name not in ("rootfs", "layers")]
        assert mode(directory) & 0o066 == 0, directory
        for name in files:
            path = os.path.join(directory, name)
            if stat.S_ISSOCK(os.stat(path).st_mode):
                assert mode(path) & 0o022 == 0, f"{path}: who may write may connect"
            elif SECRET.encode() in Path(path).read_bytes():
                assert mode(path) & PUBLIC == 0, path


def test_secrets_are_in_no_log_and_no_argument(kubelet: Kubelet) -> None:
    auth = cri.AuthConfig(username="somebody", password=SECRET, identity_token=SECRET + "2", registry_token=SECRET + "3")
    request = cri.PullImageRequest(image=cri.ImageSpec(image="127.0.0.1:1/app:1"), auth=auth)
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.images.PullImage(request)
    assert SECRET not in str(caught.value)
    wanted = cri.ContainerConfig(envs=[cri.KeyValue(key="PASSWORD", value=SECRET.encode())])
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    assert container.sh("echo $PASSWORD").strip() == SECRET
    assert SECRET not in kubelet.daemon.log_path.read_text()
    process = kubelet.daemon.process
    assert process is not None
    for pid in family(process.pid):
        assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_credentials_of_registries_are_not_kept(kubelet: Kubelet) -> None:
    auth = cri.AuthConfig(username="somebody", password=SECRET)
    with pytest.raises(grpc.RpcError):
        kubelet.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image="127.0.0.1:1/app:1"), auth=auth))
    for name in ("state.db", "state.db-wal"):
        path = kubelet.daemon.root / name
        if path.exists():
            assert SECRET.encode() not in path.read_bytes()
            assert mode(path) & PUBLIC == 0 or mode(kubelet.daemon.root) == 0o700


def test_a_socket_that_another_program_serves_is_not_taken(tmp_path: Path) -> None:
    """A slip in the configuration must not cut off another runtime's clients, nor delete a file."""
    daemon = Daemon()
    place = tmp_path / "other.sock"
    own = f'root = "{daemon.root}"\nstate = "{daemon.state}"\nsocket = "{place}"\n'
    daemon.config.write_text(own + daemon.config.read_text())
    command = [*daemon.program, "serve", "--config", str(daemon.config)]

    def refused() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode != 0
        return done.stdout + done.stderr

    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(place))
        theirs.listen()
        assert "another program listens on it" in refused()
        assert place.is_socket()
    place.unlink()
    place.write_text("precious")
    assert "is not a socket" in refused()
    assert place.read_text() == "precious"
    daemon.destroy()
