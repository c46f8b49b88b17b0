"""The default profile is there whenever a container or a command needs it, whoever has unloaded it."""

from __future__ import annotations

import subprocess

import pytest

from kernel import lsm
from proto import api_pb2 as cri
from runtime.oci.apparmor import DEFAULT_NAME, DEFAULT_TEXT
from tests.harness.kubelet import Kubelet

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not lsm.apparmor_enabled(), reason="this kernel has no AppArmor"),
]

CURRENT = ("/bin/cat", "/proc/self/attr/current")


def unload() -> None:
    """As `aa-remove-unknown` does with a profile that no file in /etc/apparmor.d names."""
    subprocess.run(["apparmor_parser", "--remove"], input=DEFAULT_TEXT.encode(), check=True)
    assert DEFAULT_NAME not in lsm.apparmor_profiles()


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_it_is_loaded_again_before_each_use(kubelet: Kubelet, handler: str) -> None:
    kubelet.need_handler(handler)
    pod = kubelet.pod(handler=handler)
    wanted = cri.ContainerConfig()
    wanted.linux.security_context.apparmor.profile_type = cri.SecurityProfile.RuntimeDefault
    unload()
    container = pod.run("/bin/sleep", "1000", config=wanted)
    assert container.exec("/bin/cat", "/proc/1/attr/current").stdout.decode().strip() == f"{DEFAULT_NAME} (enforce)"
    unload()
    assert container.exec(*CURRENT, timeout=100).stdout.decode().strip() == f"{DEFAULT_NAME} (enforce)"
    unload()
    assert pod.shell("cat /proc/self/attr/current").output().strip() == f"{DEFAULT_NAME} (enforce)"
