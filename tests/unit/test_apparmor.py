"""AppArmor: which profile a container gets on hosts with and without it. The kernel's part: SECURITY.md."""

from __future__ import annotations

import pytest

from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.oci import apparmor
from tests.unit.test_oci_spec import host

PROFILE = cri.SecurityProfile
LOADED = frozenset(("crisp-default", "mine"))


def chosen(
    context: cri.LinuxContainerSecurityContext, *, present: bool = True, loaded: frozenset[str] = LOADED
) -> str | None:
    return apparmor.select(context, host(has_apparmor=present), loaded)


def context(kind: int, reference: str = "", **fields: object) -> cri.LinuxContainerSecurityContext:
    found = cri.LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]
    found.apparmor.profile_type, found.apparmor.localhost_ref = kind, reference
    return found


@pytest.mark.parametrize(
    ("asked", "profile"),
    [
        (cri.LinuxContainerSecurityContext(), "crisp-default"),
        (cri.LinuxContainerSecurityContext(privileged=True), None),
        (cri.LinuxContainerSecurityContext(apparmor_profile="runtime/default"), "crisp-default"),
        (cri.LinuxContainerSecurityContext(apparmor_profile="unconfined"), None),
        (cri.LinuxContainerSecurityContext(apparmor_profile="localhost/mine"), "mine"),
        (context(PROFILE.RuntimeDefault), "crisp-default"),
        (context(PROFILE.RuntimeDefault, privileged=True), None),
        (context(PROFILE.Unconfined), None),
        (context(PROFILE.Localhost, "mine"), "mine"),
        (context(PROFILE.Localhost, "localhost/mine", privileged=True), "mine"),
    ],
)
def test_choice(asked: cri.LinuxContainerSecurityContext, profile: str | None) -> None:
    assert chosen(asked) == profile


def test_not_loaded() -> None:
    with pytest.raises(CrispError, match="'other' is not loaded") as caught:
        chosen(context(PROFILE.Localhost, "other"))
    assert caught.value.code is Code.FAILED_PRECONDITION
    with pytest.raises(CrispError, match="'crisp-default' is not loaded"):
        chosen(context(PROFILE.RuntimeDefault), loaded=frozenset())
    assert chosen(cri.LinuxContainerSecurityContext(), loaded=frozenset()) is None


def test_a_host_without() -> None:
    assert chosen(cri.LinuxContainerSecurityContext(), present=False) is None
    assert chosen(context(PROFILE.Unconfined), present=False) is None
    for kind, name in ((PROFILE.RuntimeDefault, "crisp-default"), (PROFILE.Localhost, "mine")):
        with pytest.raises(CrispError, match=f"{name}.*no AppArmor"):
            chosen(context(kind, "mine" if kind == PROFILE.Localhost else ""), present=False)


def test_malformed() -> None:
    with pytest.raises(CrispError, match="not known"):
        chosen(cri.LinuxContainerSecurityContext(apparmor_profile="strange"))
    with pytest.raises(CrispError, match="none is named"):
        chosen(context(PROFILE.Localhost))
