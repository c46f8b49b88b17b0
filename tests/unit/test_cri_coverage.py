"""docs/cri-coverage.md says of every field what crisp does with it and which test shows it; documents name real tests."""

from __future__ import annotations

import re

import pytest

from proto import api_pb2 as cri
from tests.documented_tests import NAMED, ROOT, missing

DOCUMENT = (ROOT / "docs/cri-coverage.md").read_text()
FIELDS = DOCUMENT.partition("\n## Fields\n")[2].partition("\n## ")[0]

MESSAGES = (
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "LinuxContainerConfig",
    "LinuxContainerSecurityContext",
    "NamespaceOption",
    "UserNamespace",
    "IDMapping",
    "SecurityProfile",
    "SELinuxOption",
    "Capability",
    "LinuxContainerResources",
    "HugepageLimit",
    "Mount",
    "Device",
    "CDIDevice",
    "LinuxContainerUser",
)


def rows(message: str) -> dict[str, tuple[str, str]]:
    """Field: what is done, tests."""
    section = FIELDS.partition(f"\n### {message}\n")[2].partition("\n### ")[0]
    return {name: (what, tests) for name, what, tests in re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.M)}


@pytest.mark.parametrize("message", MESSAGES)
def test_every_field_is_listed_with_a_test(message: str) -> None:
    found = rows(message)
    assert set(found) == {field.name for field in cri.DESCRIPTOR.message_types_by_name[message].fields}
    for name, (_, tests) in found.items():
        assert NAMED.search(tests), f"{message}.{name} names no test"


@pytest.mark.parametrize("document", ["docs/cri-coverage.md", "SECURITY.md"])
def test_documents_name_tests_that_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    assert NAMED.search(text)
    assert missing(text) == []
