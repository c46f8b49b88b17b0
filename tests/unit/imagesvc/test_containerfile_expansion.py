"""Variables as docker's reference has them; patterns in them as a shell has them."""

from __future__ import annotations

import itertools
import random
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.containerfile import instructions as i
from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.expansion import MAX_VALUE, ExpansionError, expand, expand_word
from imagesvc.containerfile.parser import parse

VARIABLES = {"foo": "/bar", "empty": "", "str": "foobarbaz", "url": "http://a/b", "n1": "1", "word": "a b"}


def step(text: str) -> i.Instruction:
    return parse(f"FROM scratch\n{text}".encode(), "F").stages[0].instructions[0]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("${foo}", "/bar"),
        ("\\$foo", "$foo"),
        ("\\${foo}", "${foo}"),
        ("$foo/x", "/bar/x"),
        ("${foo}_x", "/bar_x"),
        ("$foo_x", ""),
        ("$none", ""),
        ("a$", "a$"),
        ("$$", ""),
        ("$1x", "x"),
        ("'$foo'", "$foo"),
        ('"$foo"', "/bar"),
        ("\"a'$foo'b\"", "a'/bar'b"),
        ('"a\\"b"', 'a"b'),
        ('"a\\nb"', "a\\nb"),
        ("a\\nb", "anb"),
        ("a\\ b", "a b"),
        ("a'b'\"c\"d", "abcd"),
        ("'a\\'", "a\\"),
        ("${foo:-word}", "/bar"),
        ("${none:-word}", "word"),
        ("${none-word}", "word"),
        ("${empty:-word}", "word"),
        ("${empty-word}", ""),
        ("${none:-}", ""),
        ("${foo:+word}", "word"),
        ("${foo+word}", "word"),
        ("${empty:+word}", ""),
        ("${empty+word}", "word"),
        ("${none+word}", ""),
        ("${foo:?word}", "/bar"),
        ("${empty?word}", ""),
        ("${none:-${foo}}", "/bar"),
        ("${none:-${empty:-$n1}}x", "1x"),
        ("${none:-a\\}b}", "a}b"),
        ("${none:-'}'}", "}"),
        ("${str#f*b}", "arbaz"),
        ("${str##f*b}", "az"),
        ("${str%b*}", "foobar"),
        ("${str%%b*}", "foo"),
        ("${str#x}", "foobarbaz"),
        ("${str%%*}", ""),
        ("${str%*}", "foobarbaz"),
        ("${str#fo?}", "barbaz"),
        ("${str/ba/fo}", "foofoorbaz".replace("foofoo", "foofo")),
        ("${str//ba/fo}", "fooforfoz"),
        ("${str/r*/}", "fooba"),
        ("${str//[a]/x}", "foobarbaz"),
        ("${url#http:\\/\\/}", "a/b"),
        ("${url//\\//_}", "http:__a_b"),
        ("${str//b?/$n1}", "foo1r1z"),
        ("${none#a}", ""),
    ],
)
def test_words(word: str, expected: str) -> None:
    assert expand_word(word, VARIABLES) == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("${", "after ${ there is to be the name of a variable"),
        ("${}", "after ${ there is to be the name"),
        ("${foo", "a ${ without its }"),
        ("${foo:-a", "a ${ without its }"),
        ("${foo/a", "a ${ without its }"),
        ("${foo!x}", "! is no modifier of a variable"),
        ("${foo:x}", ":x is no modifier of a variable"),
        ("${foo:#x}", ":# is no modifier of a variable"),
        ("'a", "a ' without its other one"),
        ('"a', 'a " without its other one'),
        ("${none?give one}", "the variable none is not set: give one"),
        ("${none?}", "the variable none is not set"),
        ("${empty:?}", "the variable empty is empty"),
        ("${a:-" * 60 + "}" * 60, "more than 50 ${ in one another"),
    ],
)
def test_what_cannot_be_expanded(word: str, said: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        expand_word(word, VARIABLES)
    assert said in str(caught.value)


def test_values_have_an_end() -> None:
    value = "x" * (MAX_VALUE // 2 + 1)
    assert len(expand_word("$v", {"v": value})) == len(value)
    with pytest.raises(ExpansionError, match="grows to more than"):
        expand_word("$v$v", {"v": value})
    with pytest.raises(ExpansionError, match="grows to more than"):
        expand_word("${v//x/$v}", {"v": value[:2000]})


@pytest.mark.parametrize("form", ["{}", '"{}"', "${{none:-{}}}"])
def test_a_long_value_that_is_named_often(form: str) -> None:
    """No more is made of it than may be: 400 GB would be too much."""
    with pytest.raises(ExpansionError, match="grows to more than"):
        expand_word(form.format("$v" * 400_000), {"v": "x" * MAX_VALUE})


def test_all_values_of_an_instruction_have_an_end() -> None:
    labels = "LABEL " + " ".join(f"l{number}=$v." for number in range(10))
    with pytest.raises(ContainerfileError, match="its values grow to more than"):
        expand(step(labels), {"v": "x" * (MAX_VALUE // 2)})
    with pytest.raises(ContainerfileError, match="more than the 196605 ports"):
        expand(step("EXPOSE " + " ".join(f"1-{last}" for last in range(65000, 65004))), {})
    ports = expand(step("EXPOSE " + "1-65535 " * 100 + "1-65535/udp 1-65535/sctp"), {}).ports
    assert len(ports) == 3 * 65535


@pytest.mark.parametrize("word", ["${v//*y/z}", "${v//" + "x" * 5000 + "y/z}", "${v/" + "*x" * 5000 + "y/z}"])
def test_patterns_that_take_too_long(word: str) -> None:
    with pytest.raises(ExpansionError, match="too long for it"):
        expand_word(word, {"v": "x" * MAX_VALUE})


def test_a_shell_takes_the_same_away() -> None:
    """Every pattern of three characters and some longer ones, in bash and here."""
    source = random.Random(19)
    patterns = ["".join(letters) for letters in itertools.product("ab*?", repeat=3)]
    patterns += ["".join(source.choices("ab*?", k=source.randint(4, 7))) for _ in range(150)]
    values = ["", "a", "abab", "bbaab", "aabbaabb"]
    operators = ["#{}", "##{}", "%{}", "%%{}", "/{}/X", "//{}/X"]
    words = [f"${{v{operator.format(pattern)}}}" for pattern in patterns for operator in operators]
    script = "".join(f"v={shlex.quote(value)}\nprintf '%s\\n' {' '.join(words)}\n" for value in values)
    # Without word splitting and file names; and where a pattern takes nothing, bash 5.2 replaces nothing either.
    script = "IFS=; set -f\n" + script.replace(" ${", ' "${').replace("} ", '}" ').replace("}\n", '}"\n')
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    expected = done.stdout.split("\n")[:-1]
    pairs = [(value, word) for value in values for word in words]
    found = [expand_word(word, {"v": value}) for value, word in pairs]
    differ = [(*pair, ours, theirs) for pair, ours, theirs in zip(pairs, found, expected, strict=True) if ours != theirs]
    assert differ == []


@given(st.text(st.characters(codec="utf-8", exclude_characters="$\\'\"`"), max_size=40))
def test_what_has_no_meaning_stays(word: str) -> None:
    assert expand_word(word, VARIABLES) == word


@given(st.text(max_size=40))
def test_quoted_it_stays(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    assert expand_word(f'"{quoted}"', VARIABLES) == value
    assert expand_word("$v", {"v": value}) == value


@given(st.text("$foo{}:-+?#%/*\\'\"emptyn1_ ", max_size=30))
def test_any_word_is_expanded_or_refused(word: str) -> None:
    try:
        expand_word(word, VARIABLES)
    except ExpansionError as error:
        assert str(error)


def test_instructions() -> None:
    """The reference's example: ENV's values are those before the instruction."""
    first = expand(step("ENV abc=bye def=$abc"), {"abc": "hello"})
    assert isinstance(first, i.Env)
    assert first.pairs == (("abc", "bye"), ("def", "hello"))
    label = expand(step("LABEL $foo='a $foo' \"b c\"=d\\ e"), VARIABLES)
    assert isinstance(label, i.Label)
    assert label.pairs == (("/bar", "a $foo"), ("b c", "d e"))
    copy = expand(
        step("COPY --chown=$n1 --exclude=$foo \\$foo $foo <<E <<'F' $foo/\n$foo \\$x \"'\\a\nE\n$foo\nF"), VARIABLES
    )
    assert isinstance(copy, i.Copy)
    assert (copy.sources, copy.target, copy.chown, copy.excludes) == (("$foo", "/bar"), "/bar/", "1", ("/bar",))
    assert [document.content for document in copy.heredocs] == ["/bar $x \"'\\a\n", "$foo\n"]
    run = expand(step("RUN --mount=target=$foo,from=x --mount=type=secret,id=$n1 echo $foo"), VARIABLES)
    assert isinstance(run, i.Run)
    assert (run.mounts[0].target, run.mounts[1].id, run.command) == ("/bar", "1", ("echo $foo",))
    add = expand(step("ADD --checksum=$foo http://x/$n1 /a"), VARIABLES)
    assert isinstance(add, i.Add)
    assert (add.checksum, add.sources) == ("/bar", ("http://x/1",))
    for text in ("CMD echo $foo", "ENTRYPOINT $foo", 'SHELL ["$foo"]', "HEALTHCHECK CMD $foo", "ONBUILD ENV a=$foo"):
        assert expand(step(text), VARIABLES) == step(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ("80/tcp",)),
        ("80/TCP 53/udp 80/tcp", ("80/tcp", "53/udp")),
        ("7000-7002/udp", ("7000/udp", "7001/udp", "7002/udp")),
        ("$ports", ("1/tcp", "2/udp")),
    ],
)
def test_ports(text: str, expected: tuple[str, ...]) -> None:
    found = expand(step(f"EXPOSE {text}"), {"ports": "1 2/udp"})
    assert isinstance(found, i.Expose)
    assert found.ports == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("EXPOSE http", "F:2: EXPOSE: 'http' is no port"),
        ("EXPOSE 0", "F:2: EXPOSE: '0': ports are 1 to 65535"),
        ("EXPOSE 9-8", "F:2: EXPOSE: '9-8': ports are"),
        ("EXPOSE 80/http", "F:2: EXPOSE: '80/http' is no port"),
        ("WORKDIR $none", "F:2: WORKDIR: its value is empty once variables are put in"),
        ("USER ${none}", "F:2: USER: its value is empty"),
        ("COPY a ${b", "F:2: COPY: ${b: a ${ without its }"),
        ("ENV a=${b?why}", "F:2: ENV: the variable b is not set: why"),
        ("RUN --mount=target=$none a", "F:2: RUN: --mount: the target $none is empty"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ContainerfileError) as caught:
        expand(step(text), {})
    assert caught.value.message.startswith(said)


def test_another_escape() -> None:
    found = parse(b"# escape=`\nFROM a\nENV a=c:\\x b=`$x", "F").stages[0].instructions[0]
    env = expand(found, {"x": "1"})
    assert isinstance(env, i.Env)
    assert env.pairs == (("a", "c:\\x"), ("b", "$x"))
