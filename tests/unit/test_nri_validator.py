"""NRI's default validator: each setting, and whom it names."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from proto import nri_pb2 as nri
from proto.errors import Code
from runtime.config.nri import ValidatorConfig
from runtime.nri.errors import Refused
from runtime.nri.merge import CreateResult
from runtime.nri.validator import validate
from tests.harness.protobuf_strategies import messages

HOOKS = {"hooks": {"poststop": [{"path": "/bin/a"}]}}
SECCOMP = {"linux": {"seccomp_policy": {"default_action": "SCMP_ACT_ALLOW"}}}
NAMESPACE = {"linux": {"namespaces": [{"type": "-uts"}]}}
SYSCTL = {"linux": {"sysctl": {"net.a": "1"}}}


def request(
    *adjustments: dict[str, Any], profile: str | None = None, annotations: dict[str, str] | None = None
) -> nri.ValidateContainerAdjustmentRequest:
    """Adjusted by plugins 00-p0, 01-p1 …"""
    container = nri.Container(id="c0", name="web")
    if profile is not None:
        container.linux.seccomp_profile.profile_type = nri.SecurityProfile.ProfileType.Value(profile)
    result = CreateResult(nri.PodSandbox(id="p0", annotations=annotations), container)
    names = [(f"p{index}", f"{index:02}") for index in range(len(adjustments))]
    for (name, index), adjustment in zip(names, adjustments, strict=True):
        reply = json_format.ParseDict({"adjust": adjustment}, nri.CreateContainerResponse())
        result.add(f"{index}-{name}", reply)
    return result.validation(names)


def refusal(asked: nri.ValidateContainerAdjustmentRequest, **settings: Any) -> str:
    """Why it is refused; empty if it is not."""
    try:
        validate(asked, ValidatorConfig(enable=True, **settings))
    except Refused as error:
        assert error.code is Code.FAILED_PRECONDITION
        assert "container web" in error.message
        return error.message
    return ""


def test_hooks() -> None:
    assert "plugin 00-p0 adds OCI hooks" in refusal(request(HOOKS), reject_oci_hook_adjustment=True)
    assert "00-p0, 01-p1" in refusal(request(HOOKS, HOOKS), reject_oci_hook_adjustment=True)
    assert not refusal(request(HOOKS))
    assert not refusal(request(SYSCTL), reject_oci_hook_adjustment=True)


@pytest.mark.parametrize(
    ("profile", "setting"),
    [
        (None, "reject_unconfined_seccomp_adjustment"),
        ("UNCONFINED", "reject_unconfined_seccomp_adjustment"),
        ("RUNTIME_DEFAULT", "reject_runtime_default_seccomp_adjustment"),
        ("LOCALHOST", "reject_custom_seccomp_adjustment"),
    ],
)
def test_seccomp_policies_by_the_profile_that_the_container_has(profile: str | None, setting: str) -> None:
    settings = dict.fromkeys(
        (
            "reject_unconfined_seccomp_adjustment",
            "reject_runtime_default_seccomp_adjustment",
            "reject_custom_seccomp_adjustment",
        ),
        True,
    )
    assert "plugin 00-p0 sets another seccomp policy" in refusal(request(SECCOMP, profile=profile), **{setting: True})
    assert not refusal(request(SECCOMP, profile=profile), **settings | {setting: False})
    assert not refusal(request(SYSCTL, profile=profile), **settings)


def test_namespaces() -> None:
    assert "00-p0 (uts)" in refusal(request(NAMESPACE), reject_namespace_adjustment=True)
    assert not refusal(request(NAMESPACE))
    assert not refusal(request(HOOKS), reject_namespace_adjustment=True)


def test_sysctls() -> None:
    assert "plugin 00-p0 sets sysctls" in refusal(request(SYSCTL), reject_sysctl_adjustment=True)
    assert not refusal(request(SYSCTL))
    assert not refusal(request(NAMESPACE), reject_sysctl_adjustment=True)


REQUIRED = "required-plugins.noderesource.dev"
TOLERATE = "tolerate.example.com"


@pytest.mark.parametrize(
    ("settings", "annotations", "missing"),
    [
        ({"required_plugins": ("p0",)}, {}, ""),
        ({"required_plugins": ("00-p0",)}, {}, ""),
        ({"required_plugins": ("01-p0",)}, {}, "plugin 01-p0"),
        ({"required_plugins": ("a", "p0", "b")}, {}, "plugins a, b"),
        ({}, {REQUIRED: "[p0]"}, ""),
        ({}, {REQUIRED: "[p0, c]"}, "plugin c"),
        ({}, {REQUIRED: "- p0\n- c\n"}, "plugin c"),
        ({}, {REQUIRED: ""}, ""),
        ({}, {f"{REQUIRED}/pod": '["c"]'}, "plugin c"),
        ({}, {f"{REQUIRED}/container.web": "[c]", REQUIRED: "[d]"}, "plugin c,"),
        ({}, {f"{REQUIRED}/container.other": "[c]"}, ""),
        ({"required_plugins": ("a",)}, {REQUIRED: "[c]"}, "plugins a, c"),
        ({}, {REQUIRED: "c"}, "no list of plugins"),
        ({}, {REQUIRED: "[[["}, "no list of plugins"),
        ({}, {REQUIRED: "[{}]"}, "no list of plugins"),
        ({"required_plugins": ("a",)}, {TOLERATE: "true"}, "plugin a"),
        ({"required_plugins": ("a",), "tolerate_missing_plugins_annotation": TOLERATE}, {TOLERATE: "true"}, ""),
        ({"required_plugins": ("a",), "tolerate_missing_plugins_annotation": TOLERATE}, {TOLERATE: "false"}, "plugin a"),
        ({"tolerate_missing_plugins_annotation": TOLERATE}, {TOLERATE: "1", REQUIRED: "[c]"}, ""),
        (
            {"required_plugins": ("a",), "tolerate_missing_plugins_annotation": TOLERATE},
            {f"{TOLERATE}/container.web": "f", TOLERATE: "t"},
            "plugin a",
        ),
        ({"tolerate_missing_plugins_annotation": TOLERATE}, {TOLERATE: "maybe"}, "neither true nor false"),
    ],
)
def test_required_plugins(settings: dict[str, Any], annotations: dict[str, str], missing: str) -> None:
    told = refusal(request({}, annotations=annotations), **settings)
    assert bool(told) == bool(missing)
    assert missing in told


def test_nothing_is_refused_where_it_is_off() -> None:
    every = dict.fromkeys((name for name in ValidatorConfig.__dataclass_fields__ if name.startswith("reject_")), True)
    validate(request(HOOKS, SECCOMP, NAMESPACE, SYSCTL), ValidatorConfig(enable=False, required_plugins=("a",), **every))


@given(
    messages(nri.ValidateContainerAdjustmentRequest, entries=2),
    st.booleans(),
    st.lists(st.text(max_size=3), max_size=2),
    st.sampled_from(["", TOLERATE]),
    st.dictionaries(st.sampled_from([REQUIRED, TOLERATE]), st.text(max_size=12)),
)
def test_whatever_is_asked_is_allowed_or_refused(
    asked: nri.ValidateContainerAdjustmentRequest,
    reject: bool,
    required: list[str],
    tolerate: str,
    annotations: dict[str, str],
) -> None:
    asked.pod.annotations.update({key: value.encode(errors="replace").decode() for key, value in annotations.items()})
    before = asked.SerializeToString(deterministic=True)
    settings = {name: reject for name in ValidatorConfig.__dataclass_fields__ if name.startswith("reject_")}
    try:
        validate(
            asked,
            ValidatorConfig(
                enable=True, required_plugins=tuple(required), tolerate_missing_plugins_annotation=tolerate, **settings
            ),
        )
    except Refused:
        pass
    assert asked.SerializeToString(deterministic=True) == before, "nothing is changed in place"
