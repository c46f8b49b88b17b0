"""Containerfiles as docker's reference has them, example by example, and what is wrong with others."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.containerfile import instructions as i
from imagesvc.containerfile.errors import ContainerfileError, Place
from imagesvc.containerfile.parser import parse, parse_trigger

SECOND = 1_000_000_000


def steps(text: str) -> tuple[i.Instruction, ...]:
    """The instructions after FROM scratch."""
    return parse(f"FROM scratch\n{text}".encode(), "Containerfile").stages[0].instructions


def step(text: str) -> i.Instruction:
    (found,) = steps(text)
    return found


def fields(text: str) -> dict[str, object]:
    """What an instruction says beside where it stands."""
    found = step(text)
    common = {"at", "text", "escape"}
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name not in common}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN <<EOF\n\tapt-get update\nEOF", ("\tapt-get update\n",)),
        ("RUN <<-EOF\n\tapt-get update\n\tEOF", ("apt-get update\n",)),
        ("RUN <<'EOF'\necho $x\nEOF", ("echo $x\n",)),
        ("RUN cat <<EOF > /x\nhello\nEOF", ("cat <<EOF > /x\nhello\nEOF",)),
        ("RUN a <<A && b <<-B\n1\nA\n\t2\n\tB", ("a <<A && b <<-B\n1\nA\n\t2\n\tB",)),
        ("RUN <<A cat\n1\nA", ("<<A cat\n1\nA",)),
        ("RUN 3<<EOF cat\nx\nEOF", ("3<<EOF cat\nx\nEOF",)),
        ("RUN cat <<< word", ("cat <<< word",)),
        ("RUN echo $((1 << 2))", ("echo $((1 << 2))",)),
        ("RUN echo '<<EOF'", ("echo '<<EOF'",)),
        ("RUN source $HOME/.bashrc && \\\necho $HOME", ("source $HOME/.bashrc && echo $HOME",)),
        ("RUN echo hello \\\n# comment\n  # indented\nworld", ("echo hello world",)),
        ("RUN echo \\\\\nENV a=b", ("echo \\\\",)),
        ("run lower", ("lower",)),
        ('RUN ["/bin/bash", "-c", "echo hello"]', ("/bin/bash", "-c", "echo hello")),
        ('RUN [ "a", "b\\n\\u00e4" ]', ("a", "b\nä")),
        ("RUN [ a = b ]", ("[ a = b ]",)),
        ("RUN --network=none [ -e x ] && cat <<EOF\n1\nEOF", ("[ -e x ] && cat <<EOF\n1\nEOF",)),
        ('RUN --network=none ["<<EOF"]', ("<<EOF",)),
        ("RUN ['a', 'b']", ("['a', 'b']",)),
    ],
)
def test_commands(text: str, expected: tuple[str, ...]) -> None:
    found = steps(text)[0]
    assert isinstance(found, i.Run)
    assert found.command == expected
    assert found.shell is not text.endswith(('"]', '" ]'))
    assert not found.script


def test_a_here_document_that_is_a_program() -> None:
    found = step("RUN <<EOF\n#!/usr/bin/env python\nprint('hi')\nEOF")
    assert isinstance(found, i.Run)
    assert found.script == "#!/usr/bin/env python\nprint('hi')\n"
    assert found.command == ()


def test_lines_and_warnings() -> None:
    read = parse(b"\xef\xbb\xbf# comment\r\n\r\nFROM a\r\n  RUN x \\\r\n\r\n  y\r\nCMD ['x']\r\n", "F")
    assert [(found.at.line, found.text) for found in read.stages[0].instructions] == [(4, "RUN x   y"), (7, "CMD ['x']")]
    assert [warning.partition(": ")[0] for warning in read.warnings] == ["F:4", "F:7"]
    assert "empty line" in read.warnings[0]
    assert "JSON form" in read.warnings[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# syntax=docker/dockerfile:1\n# escape=`\nFROM a", i.Directives("docker/dockerfile:1", "`")),
        ("#check=skip=all\nFROM a", i.Directives(check="skip=all")),
        ("# About this\n# escape=`\nFROM a", i.Directives()),
        ("# unknown=value\n# escape=`\nFROM a", i.Directives()),
        ("\n# escape=`\nFROM a", i.Directives()),
        ("FROM a\n# escape=`", i.Directives()),
        ("#    SynTax =   x   \nFROM a", i.Directives("x")),
    ],
)
def test_directives(text: str, expected: i.Directives) -> None:
    assert parse(text.encode(), "F").directives == expected


def test_a_directive_with_much_space_in_it() -> None:
    value = "x" + " " * 1_000_000 + "y"
    assert parse(f"#syntax={value} \nFROM a".encode(), "F").directives.syntax == value


def test_another_escape() -> None:
    read = parse(b"# escape=`\nFROM a\nCOPY testfile.txt c:\\\nRUN dir `\n c:\\\n", "F")
    copy, run = read.stages[0].instructions
    assert isinstance(copy, i.Copy)
    assert copy.target == "c:\\"
    assert isinstance(run, i.Run)
    assert run.command == ("dir  c:\\",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", [("a", "b")]),
        ('MY_NAME="John Doe" MY_DOG=Rex\\ The\\ Dog MY_CAT=fluffy', None),
        ("MY_VAR my-value with  spaces", [("MY_VAR", "my-value with  spaces")]),
        ("ONE TWO= THREE=world", [("ONE", "TWO= THREE=world")]),
        ("a= b=''", [("a", ""), ("b", "''")]),
        ("a='b c' \\\n  d=e", [("a", "'b c'"), ("d", "e")]),
    ],
)
def test_pairs(text: str, expected: list[tuple[str, str]] | None) -> None:
    expected = expected or [("MY_NAME", '"John Doe"'), ("MY_DOG", "Rex\\ The\\ Dog"), ("MY_CAT", "fluffy")]
    for keyword in ("ENV", "LABEL"):
        assert fields(f"{keyword} {text}") == {"pairs": tuple(expected)}


def test_args() -> None:
    read = parse(b"ARG V=1 W\nARG X\nFROM a:$V\nARG V", "F")
    assert [arg.pairs for arg in read.global_args] == [(("V", "1"), ("W", None)), (("X", None),)]
    (arg,) = read.stages[0].instructions
    assert isinstance(arg, i.Arg)
    assert arg.pairs == (("V", None),)


def test_stages() -> None:
    read = parse(b"FROM --platform=$BUILDPLATFORM golang:1.2 as Build\nRUN a\nFROM scratch\nCOPY --from=build /a /b", "F")
    assert [(stage.name, stage.index, stage.base.image, stage.base.platform) for stage in read.stages] == [
        ("build", 0, "golang:1.2", "$BUILDPLATFORM"),
        ("", 1, "scratch", ""),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COPY a b /c/", {"sources": ("a", "b"), "target": "/c/"}),
        ('COPY ["a b", "/c d"]', {"sources": ("a b",), "target": "/c d", "json": True}),
        ('COPY "a b" /c', {"sources": ('"a b"',), "target": "/c"}),
        (
            "COPY --from=x --chown=55:mygroup --chmod=u=rwX,go=rX --link --parents --exclude=*.txt --exclude=b a /c/",
            {
                "sources": ("a",),
                "target": "/c/",
                "from_": "x",
                "chown": "55:mygroup",
                "chmod": "u=rwX,go=rX",
                "link": True,
                "parents": True,
                "excludes": ("*.txt", "b"),
            },
        ),
        ("COPY --link=false a /c", {"sources": ("a",), "target": "/c"}),
        ('COPY --chown="$U:g" a /c', {"sources": ("a",), "target": "/c", "chown": "$U:g"}),
        (
            "COPY <<file1 <<-'file2' x /dest/\nhi $a\nfile1\n\tbye $a\n\tfile2",
            {
                "sources": ("x",),
                "target": "/dest/",
                "heredocs": (
                    i.HereDocument("file1", "hi $a\n", expand=True),
                    i.HereDocument("file2", "bye $a\n", expand=False),
                ),
            },
        ),
    ],
)
def test_copies(text: str, expected: dict[str, object]) -> None:
    defaults = {
        "heredocs": (),
        "from_": "",
        "chown": "",
        "chmod": "",
        "link": False,
        "parents": False,
        "excludes": (),
        "json": False,
    }
    assert fields(text) == {**defaults, **expected}


def test_adds() -> None:
    found = step(f"ADD --checksum=sha256:{'0' * 64} --keep-git-dir=true --unpack=false https://x.example/a.tar /a/")
    assert isinstance(found, i.Add)
    assert (found.checksum, found.keep_git_dir, found.unpack) == ("sha256:" + "0" * 64, True, False)
    again = step("ADD a /b")
    assert isinstance(again, i.Add)
    assert again.unpack is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/x", {"target": "/x", "readonly": True}),
        ("type=bind,from=build,src=/a,dst=/b,rw", {"from_": "build", "source": "/a", "target": "/b"}),
        (
            "type=cache,target=/var/cache/apt,sharing=locked",
            {"type": "cache", "target": "/var/cache/apt", "sharing": "locked"},
        ),
        (
            "type=cache,id=i,target=/c,mode=0700,uid=5,gid=6,ro",
            {"type": "cache", "id": "i", "target": "/c", "mode": 0o700, "uid": 5, "gid": 6, "readonly": True},
        ),
        ("type=tmpfs,target=/t,size=64m", {"type": "tmpfs", "target": "/t", "size": 64 << 20}),
        ("type=secret,id=aws,target=/root/.aws", {"type": "secret", "id": "aws", "target": "/root/.aws"}),
        ("type=secret,id=K,env=KEY,required=true", {"type": "secret", "id": "K", "env": "KEY", "required": True}),
        ("type=secret,src=name", {"type": "secret", "id": "name"}),
        (
            "type=secret,id=s,dst=/s,mode=0440,uid=1,gid=2",
            {"type": "secret", "id": "s", "target": "/s", "mode": 0o440, "uid": 1, "gid": 2},
        ),
        ("type=ssh", {"type": "ssh"}),
        (
            "type=ssh,id=a,target=/s,required,mode=0600",
            {"type": "ssh", "id": "a", "target": "/s", "required": True, "mode": 0o600},
        ),
        ("type=cache,destination=/c,source=/s,readonly=false", {"type": "cache", "target": "/c", "source": "/s"}),
        ("type=bind,target=/x,readwrite=false", {"target": "/x", "readonly": True}),
        *(
            (f"type=tmpfs,target=/t,size={text}", {"type": "tmpfs", "target": "/t", "size": size})
            for text, size in (("5", 5), ("6b", 6), ("2k", 2048), ("3MB", 3 << 20), ("1GiB", 1 << 30), ("2T", 2 << 40))
        ),
        ("'type=bind,\"source=a,b\",target=/x'", {"source": "a,b", "target": "/x", "readonly": True}),
    ],
)
def test_mounts(text: str, expected: dict[str, object]) -> None:
    found = step(f"RUN --mount={text} --network=none --security=insecure true")
    assert isinstance(found, i.Run)
    assert (found.network, found.security, found.command) == ("none", "insecure", ("true",))
    assert found.mounts == (i.RunMount(**expected),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WORKDIR /a b", {"path": "/a b"}),
        ("USER www-data:adm", {"user": "www-data:adm"}),
        ("EXPOSE 80/tcp 80/udp $P", {"ports": ("80/tcp", "80/udp", "$P")}),
        ('VOLUME ["/data", "/a b"]', {"paths": ("/data", "/a b"), "json": True}),
        ("VOLUME /var/log /var/db", {"paths": ("/var/log", "/var/db"), "json": False}),
        ('ENTRYPOINT ["top", "-b"]', {"command": ("top", "-b"), "shell": False}),
        ("ENTRYPOINT exec top -b", {"command": ("exec top -b",), "shell": True}),
        ("ENTRYPOINT []", {"command": (), "shell": False}),
        ("CMD", {"command": (), "shell": False}),
        ('CMD echo "This is a test." | wc -', {"command": ('echo "This is a test." | wc -',), "shell": True}),
        ('SHELL ["powershell", "-command"]', {"command": ("powershell", "-command")}),
        ("STOPSIGNAL SIGKILL", {"signal": "SIGKILL"}),
        ("MAINTAINER A <a@example.org>", {"name": "A <a@example.org>"}),
        ("ONBUILD ADD . /app/src", {"trigger": "ADD . /app/src"}),
        ("ONBUILD RUN <<E\nhi\nE", {"trigger": "RUN <<E\nhi\nE"}),
    ],
)
def test_other_instructions(text: str, expected: dict[str, object]) -> None:
    assert fields(text) == expected


def test_health_checks() -> None:
    none = {"interval": 0, "timeout": 0, "start_period": 0, "start_interval": 0, "retries": 0}
    command = "curl -f http://localhost/ || exit 1"
    assert fields(f"HEALTHCHECK --interval=5m30s --timeout=1.5s --retries=2 CMD {command}") == {
        **none,
        "interval": 330 * SECOND,
        "timeout": 3 * SECOND // 2,
        "retries": 2,
        "command": (command,),
        "shell": True,
    }
    assert fields("HEALTHCHECK NONE") == {**none, "command": (), "shell": False}
    assert fields('HEALTHCHECK cmd ["a"]') == {**none, "command": ("a",), "shell": False}


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1000000ns", 10**6),
        ("2000us", 2 * 10**6),
        ("2000µs", 2 * 10**6),
        ("2000μs", 2 * 10**6),
        ("3ms", 3 * 10**6),
        ("4s", 4 * SECOND),
        ("5m", 300 * SECOND),
        ("6h", 6 * 3600 * SECOND),
        ("1h1m1.25s", 3661 * SECOND + SECOND // 4),
        ("0.5h", 1800 * SECOND),
        ("0", 0),
        ("0s", 0),
        ("2562047h", 2562047 * 3600 * SECOND),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    found = step(f"HEALTHCHECK --timeout={text} CMD true")
    assert isinstance(found, i.HealthCheck)
    assert found.timeout == nanoseconds


@pytest.mark.parametrize("text", ["1", "s", "-1s", "1s ", "1.s", ".5s", "1d", "2562048h", "999999ns", "1e3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ContainerfileError, match="F:2: HEALTHCHECK: --timeout is to be"):
        parse(f"FROM a\nHEALTHCHECK --timeout='{text}' CMD true".encode(), "F")


def test_triggers() -> None:
    at = Place("ONBUILD of x", 2)
    found = parse_trigger("COPY <<E /a\nb\nE", at)
    assert isinstance(found, i.Copy)
    assert (found.at, found.heredocs) == (at, (i.HereDocument("E", "b\n", expand=True),))
    for text in ("FROM a", "ONBUILD RUN x", "", "RUN a\nRUN b", "MAINTAINER x"):
        with pytest.raises(ContainerfileError, match="ONBUILD of x:2"):
            parse_trigger(text, at)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "F:1: it has no instructions: it is to begin with FROM IMAGE"),
        ("RUN a", "F:1: RUN: a Containerfile begins with FROM; only ARG may stand before it"),
        ("FROM a\n\nRUM a", "F:3: there is no instruction RUM; did you mean RUN?"),
        ("FROM a\nCOPY --form=x a b", "F:2: COPY: there is no option --form; did you mean --from?"),
        ("FROM a\nENV --x=1 a=b", "F:2: ENV: there is no option --x: this instruction has none"),
        ("FROM a\nCOPY --chown a b", "F:2: COPY: --chown needs a value: --chown=VALUE"),
        ("FROM a\nCOPY --chown=a --chown=b a b", "F:2: COPY: --chown stands there twice"),
        ("FROM a\nCOPY --link=maybe a b", "F:2: COPY: --link is to be true or false, and is 'maybe'"),
        ("FROM a\nCOPY a", "F:2: COPY: it needs a source and a target: COPY SOURCE… TARGET"),
        ("FROM a\nCOPY a <<E\nE", "F:2: COPY: a here-document is a source"),
        ("FROM a\nCOPY --from=$x a b", "F:2: COPY: --from=$x cannot have a variable"),
        ("FROM a\nRUN <<E\nfoo", "F:2: RUN: the here-document E has no end: a line is to be E and nothing else"),
        ("FROM a\nRUN <<E\nE", "F:2: RUN: the here-document E is empty"),
        ("FROM a\nRUN", "F:2: RUN: it needs a command"),
        ("FROM a\nRUN --mount=type=cash,target=/x a", "F:2: RUN: --mount: there is no type 'cash'; did you mean cache?"),
        ("FROM a\nRUN --mount=type=cache a", "F:2: RUN: --mount: a cache mount needs its target"),
        ("FROM a\nRUN --mount=type=tmpfs,target=/x,uid=1 a", "F:2: RUN: --mount: a tmpfs mount has no field 'uid'"),
        ("FROM a\nRUN --mount=type=secret a", "F:2: RUN: --mount: a secret needs its id"),
        ("FROM a\nRUN --mount=from=$x,target=/a a", "F:2: RUN: --mount: from=$x cannot have a variable"),
        ("FROM a\nRUN --mount=target a", "F:2: RUN: --mount: 'target' is to be name=value"),
        ("FROM a\nRUN --mount=type=cache,target=/x,mode=9 a", "F:2: RUN: --mount: mode is to be octal, like 0755"),
        ("FROM a\nRUN --network=bridge a", "F:2: RUN: --network is to be default, none or host, and is 'bridge'"),
        ('FROM a\nRUN ["a", 1]', "F:2: RUN: in the JSON form everything is a string in double quotes"),
        ("FROM a\nSHELL /bin/sh", 'F:2: SHELL: it needs the JSON form: SHELL ["/bin/bash", "-c"]'),
        ("FROM a b", "F:1: FROM: it is to be FROM [--platform=PLATFORM] IMAGE [AS NAME]"),
        ("FROM a AS 1", "F:1: FROM: a stage cannot be called '1'"),
        ("FROM a AS b\nFROM c AS B", "F:2: FROM: there is a stage b already"),
        ("FROM a\nENV", "F:2: ENV: it is to be ENV NAME=VALUE …"),
        ("FROM a\nENV a", "F:2: ENV: a has no value: it is to be ENV a=VALUE"),
        ("FROM a\nENV a=b c", "F:2: ENV: 'c' has no =: it is to be NAME=VALUE"),
        ("FROM a\nENV =b", "F:2: ENV: '=b' has no name before the ="),
        ("FROM a\nEXPOSE", "F:2: EXPOSE: it needs a port"),
        ("FROM a\nHEALTHCHECK", "F:2: HEALTHCHECK: it is to be HEALTHCHECK [OPTIONS] CMD COMMAND"),
        ("FROM a\nHEALTHCHECK --interval=1 CMD a", "F:2: HEALTHCHECK: --interval is to be a duration like 30s"),
        ("FROM a\nHEALTHCHECK --timeout=1us CMD a", "F:2: HEALTHCHECK: --timeout is to be a millisecond at least"),
        ("FROM a\nONBUILD FROM b", "F:2: ONBUILD: FROM cannot be the instruction of an ONBUILD"),
        ("FROM a\nONBUILD COPY a", "F:2: COPY: it needs a source and a target"),
        ("# escape=x\nFROM a", "F:1: escape is to be \\ or `, and is 'x'"),
        ("# escape=`\n# escape=`\nFROM a", "F:2: the directive escape stands here a second time"),
        ("FROM a\nRUN \0", "F:2: it has a NUL character"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ContainerfileError) as caught:
        parse(text.encode(), "F")
    assert caught.value.message.startswith(said)


def test_what_is_no_text() -> None:
    with pytest.raises(ContainerfileError, match="F:2: it is not text in UTF-8"):
        parse(b"FROM a\nRUN \xff", "F")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=20)


@given(
    st.lists(
        st.one_of(st.sampled_from(("FROM a", "RUN ", "COPY ", "ENV ", "--mount=", "<<E", "E", "\\", "# escape=`")), WORDS)
    )
)
def test_any_text_is_read_or_refused_with_its_line(pieces: list[str]) -> None:
    text = "FROM scratch\n" + "\n".join(pieces)
    try:
        read = parse(text.encode(), "F")
    except ContainerfileError as error:
        assert 1 <= error.at.line <= text.count("\n") + 1
    else:
        lines = [found.at.line for stage in read.stages for found in stage.instructions]
        assert lines == sorted(set(lines))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters='\0\\"'), max_size=12), min_size=1, max_size=5))
def test_the_json_form_is_taken_as_it_stands(command: list[str]) -> None:
    found = step("RUN " + json.dumps(command))
    assert isinstance(found, i.Run)
    assert list(found.command) == command


@given(st.lists(WORDS.filter(lambda line: line != "EOF"), max_size=6), st.sampled_from(("COPY", "ADD")))
def test_here_documents_are_taken_as_they_stand(lines: list[str], keyword: str) -> None:
    content = "".join(line + "\n" for line in lines)
    found = steps(f"{keyword} <<'EOF' /x\n{content}EOF\nRUN after")
    assert isinstance(found[0], i.Copy)
    assert found[0].heredocs[0].content == content
    assert found[1].at.line == len(lines) + 4


def test_a_trigger_is_read_again_as_it_was_written() -> None:
    found = step("ONBUILD COPY <<-'E' a /x/\n\tb $c\n\tE")
    assert isinstance(found, i.OnBuild)
    again = parse_trigger(found.trigger, found.at)
    assert isinstance(again, i.Copy)
    assert again.heredocs == (i.HereDocument("E", "b $c\n", expand=False),)
