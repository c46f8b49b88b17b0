"""Patterns of paths as Go has them, and ignore files as docker has them."""

from __future__ import annotations

import fnmatch
import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.containerfile import ignore
from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.patterns import PathPattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a][^a][^a]b", "a☺b", False),
        ("[a-ζ]*", "α", True),
        ("[\\]a]", "]", True),
        ("[\\-x]", "-", True),
        ("[x\\-]", "x", True),
        ("*x", "xxx", True),
        (".*", ".git", True),
        ("**", "a/b/c", True),
        ("**/x", "x", True),
        ("**/x", "a/b/x", True),
        ("**/x", "a/xx", False),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "a/x/yb", False),
        ("**/a/**", "x/a/y", True),
        ("**.go", "x/y.go", True),
        ("**b/c", "a/ab/c", True),
        ("**.g?", "x/y.go", False),
        ("**b/*", "ab/x", False),
        ("**b/*", "a/b/x", True),
        ("/a/./b/../c/", "a/c", True),
        ("a[a-c]*/*.txt", "ab1/x.txt", True),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert PathPattern(pattern).matches(path) is expected


@pytest.mark.parametrize("pattern", ["[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "a\\", "[a-b-c]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PatternError):
        PathPattern(pattern)


@given(st.text("ab*?", min_size=1, max_size=8).filter(lambda text: "**" not in text), st.text("ab", min_size=1, max_size=10))
def test_a_component_is_matched_as_by_a_shell(pattern: str, name: str) -> None:
    assert PathPattern(pattern).matches(name) is fnmatch.fnmatchcase(name, pattern)


def test_no_pattern_is_slow() -> None:
    """It would take longer than the test may."""
    assert not PathPattern("a*" * 60 + "b").matches("a" * 200)
    assert not PathPattern("**/a/" * 20 + "b").matches("a/" * 60 + "c")


RULES = """
# comment
*/temp*
*/*/temp*
temp?
/docs
*.md
!README.md
  build/
**/*.log
!keep/**/*.log
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("somedir/temporary.txt", True),
        ("somedir/temp", True),
        ("somedir/subdir/temporary.txt", True),
        ("tempa", True),
        ("temp", False),
        ("temporary", False),
        ("docs", True),
        ("docs/a/b", True),
        ("x/docs", False),
        ("a.md", True),
        ("README.md", False),
        ("x/a.md", False),
        ("build", True),
        ("build/x", True),
        ("a.log", True),
        ("x/y/a.log", True),
        ("keep/x/a.log", False),
        ("keep/a.log", False),
        ("keep/a.txt", False),
    ],
)
def test_ignore_files(path: str, expected: bool) -> None:
    assert ignore.parse(RULES, ".dockerignore").ignores(path) is expected


def test_the_last_rule_that_fits_decides() -> None:
    """The reference's examples."""
    one = ignore.parse("*.md\n!README*.md\nREADME-secret.md", "i")
    assert [one.ignores(name) for name in ("a.md", "README-x.md", "README-secret.md")] == [True, False, True]
    two = ignore.parse("*.md\nREADME-secret.md\n!README*.md", "i")
    assert [two.ignores(name) for name in ("a.md", "README-x.md", "README-secret.md")] == [True, False, False]


def test_exceptions_in_what_is_ignored() -> None:
    rules = ignore.parse("*\n!src\nsrc/secret\n!a/b/*.c", "i")
    assert [rules.ignores(path) for path in ("x", "src", "src/x", "src/secret/y", "a", "a/b", "a/b/x.c")] == [
        *(True, False, False, True),
        *(True, True, False),
    ]
    assert [rules.exempts_below(path) for path in ("a", "a/b", "x", "a/c")] == [True, True, False, False]


@pytest.mark.parametrize("text", ["", "\n\n", "# a", ".", "/", "./", "a/..", "../a"])
def test_what_ignores_nothing(text: str) -> None:
    assert not ignore.parse(text, "i").ignores("a")


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ContainerfileError, match=r"\.dockerignore:2: .*without its \]"):
        ignore.parse("a\nb[\n", ".dockerignore")
    with pytest.raises(ContainerfileError, match="i:1: after ! there is to be a pattern"):
        ignore.parse("!", "i")


def _as_docker(rules: list[str], path: str) -> bool:
    """moby/patternmatcher's way: an expression for each rule, tried at the path and at each directory above it."""
    ignored = False
    above = path.split("/")
    for rule in rules:
        exception, text = rule.startswith("!"), posixpath.normpath(rule.removeprefix("!")).lstrip("/")
        expression = ""
        for piece in re.findall(r"\*\*/|\*\*|\*|.", text):
            expression += {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
        if any(re.fullmatch(expression, "/".join(above[: i + 1])) for i in range(len(above))):
            ignored = not exception
    return ignored


NAMES = st.sampled_from(("a", "b", "ab", "x.c", "*", "a*", "?", "*.c"))
PATTERNS = st.lists(st.one_of(NAMES, st.just("**")), min_size=1, max_size=3).map("/".join)


@given(
    st.lists(st.tuples(st.sampled_from(("", "!")), PATTERNS).map("".join), max_size=5),
    st.lists(st.sampled_from(("a", "b", "ab", "x.c")), min_size=1, max_size=4).map("/".join),
)
def test_rules_mean_what_they_mean_to_docker(rules: list[str], path: str) -> None:
    parsed = ignore.parse("\n".join(rules), "i")
    ignored = parsed.ignores(path)
    assert ignored is _as_docker(rules, path)
    directories = path.split("/")
    if not ignored:
        for end in range(1, len(directories)):
            directory = "/".join(directories[:end])
            assert not parsed.ignores(directory) or parsed.exempts_below(directory)
