from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.references import id_prefix, parse_reference, try_parse
from proto.errors import Code, CrispError

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.2", "docker.io/library/nginx:1.2"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("quay.io/a__b/c-d.e:V_1.x-y", "quay.io/a__b/c-d.e:V_1.x-y"),
        (f"quay.io/a@{DIGEST}", f"quay.io/a@{DIGEST}"),
        (f"quay.io/a:v1@{DIGEST}", f"quay.io/a@{DIGEST}"),
    ],
)
def test_normalisation(written: str, normal: str) -> None:
    assert str(parse_reference(written)) == normal
    assert str(parse_reference(normal)) == normal


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "",
            " ",
            "nginx ",
            "a:b:c",
            "a//b",
            "a/",
            "/a",
            "-a",
            "a:",
            "a:-x",
            "Team/../x",
            "a@sha256:12",
            "a@md5:aa",
            "UPPER",
        ),
        *("a" * 256, f"a@{DIGEST}x", f"a@{DIGEST.upper()}", "a:" + "x" * 129, "quay.io:port/a", "a b", "a\nb", "a\0"),
    ],
)
def test_refusals(bad: str) -> None:
    with pytest.raises(CrispError) as caught:
        parse_reference(bad)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert try_parse(bad) is None


@given(st.text())
def test_anything_is_parsed_or_refused(text: str) -> None:
    reference = try_parse(text)
    if reference is not None:
        assert parse_reference(str(reference)) == reference


def test_ids() -> None:
    assert id_prefix("sha256:" + "b" * 64) == "b" * 64
    assert id_prefix("abc123") == "abc123"
    assert id_prefix("nginx") is None
