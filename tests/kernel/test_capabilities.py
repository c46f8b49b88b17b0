"""Giving capabilities up, on the real kernel."""

from __future__ import annotations

import os
import traceback

import pytest

from kernel import capabilities, syscalls

pytestmark = pytest.mark.root


def in_child(check: object) -> int:
    """Exit status of a child that runs `check`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()  # type: ignore[operator]
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def status_mask(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith(name + ":"))


def test_what_is_given_up_is_gone(tmp_path: object) -> None:
    def check() -> None:
        names = frozenset({"CAP_CHOWN", "CAP_FOWNER"})
        capabilities.keep(names)
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert status_mask(kind) == capabilities.to_mask(names), kind
        assert status_mask("CapInh") == status_mask("CapAmb") == 0
        os.chown(str(tmp_path), 1000, 1000)
        with pytest.raises(PermissionError):
            os.chroot("/")
        with pytest.raises(PermissionError):
            syscalls.unshare(syscalls.CLONE_NEWNS)

    assert in_child(check) == 0
