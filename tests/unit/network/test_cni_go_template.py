from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import CrispError
from runtime.network.cni.go_template import render

VALUES = {
    "PodCIDR": "10.0.0.0/24",
    "PodCIDRRanges": ["10.0.0.0/24", "fd00::/64"],
    "Routes": ["0.0.0.0/0"],
    "Empty": [],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("no actions { } }}", "no actions { } }}"),
        ('"{{.PodCIDR}}"', '"10.0.0.0/24"'),
        ("{{ .PodCIDR }}", "10.0.0.0/24"),
        ("{{range .PodCIDRRanges}}<{{.}}>{{end}}", "<10.0.0.0/24><fd00::/64>"),
        ("{{range $cidr := .PodCIDRRanges}}<{{$cidr}}>{{end}}", "<10.0.0.0/24><fd00::/64>"),
        (
            '[{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}]',
            '[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]',
        ),
        ("{{if .Empty}}a{{else}}b{{end}}{{if .Routes}}c{{end}}", "bc"),
        ("{{range .Empty}}a{{else}}none{{end}}", "none"),
        ("a  {{- .PodCIDR -}}  b", "a10.0.0.0/24b"),
        ("a{{/* a comment */}}b", "ab"),
        ("{{range .Routes}}{{range $j, $r := .PodCIDRRanges}}{{$j}}{{end}}{{end}}", "01"),
    ],
)
def test_what_is_understood(template: str, expected: str) -> None:
    assert render(template, VALUES) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Nothing}}", ".Nothing is unknown; known are .Empty, .PodCIDR"),
        ("{{.Routes}}", ".Routes is a list"),
        ("{{range .PodCIDR}}{{end}}", ".PodCIDR is not a list"),
        ("{{range .Routes}}", "{{range .Routes}} has no {{end}}"),
        ("{{end}}", "{{end}} is not understood"),
        ("{{printf .PodCIDR}}", "{{printf .PodCIDR}} is not understood"),
        ("{{with .PodCIDR}}{{end}}", "{{with .PodCIDR}} is not understood"),
        ("{{range $i := 1 }}{{end}}", "1 is unknown"),
        ("{{$x}}", "$x is unknown"),
        ("{{}}", "{{}} is not understood"),
    ],
)
def test_what_is_not(template: str, message: str) -> None:
    with pytest.raises(CrispError) as caught:
        render(template, VALUES)
    assert message in caught.value.message


@given(st.lists(st.sampled_from(["{{", "}}", "range ", "if ", "end", "else", ".Routes", "$i", " := ", ", ", "-", " ", "x"])))
def test_any_template_is_filled_in_or_refused(pieces: list[str]) -> None:
    try:
        render("".join(pieces), VALUES)
    except CrispError:
        pass
