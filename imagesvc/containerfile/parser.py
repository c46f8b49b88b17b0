"""A Containerfile's text as instructions: what is written is checked here, what depends on variables in expansion.py.

Pure: bytes in, dataclasses out; ContainerfileError with file, line, instruction and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from imagesvc.containerfile import lines, words
from imagesvc.containerfile.durations import parse_duration
from imagesvc.containerfile.errors import ContainerfileError, Place
from imagesvc.containerfile.flags import Flags, parse_mount, split_flags, suggestion
from imagesvc.containerfile.instructions import (
    Add,
    Arg,
    Cmd,
    Containerfile,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    HealthCheck,
    HereDocument,
    Instruction,
    Label,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    Stage,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from imagesvc.containerfile.lines import LogicalLine

_STAGE_NAME: Final = re.compile("[a-z][a-z0-9-_.]*")
_NOT_TRIGGERS: Final = ("ONBUILD", "FROM", "MAINTAINER")


def parse(text: bytes, name: str) -> Containerfile:
    """Reads a Containerfile, which is called `name` in errors."""
    read = lines.read(text, name)
    warnings = [*read.warnings]
    global_args: list[Arg] = []
    stages: list[tuple[From, list[Instruction]]] = []
    names: set[str] = set()
    for line in read.lines:
        step = _instruction(line, name, read.directives.escape, warnings)
        if isinstance(step, From):
            if step.name in names:
                raise step.error(f"there is a stage {step.name} already: names of stages differ")
            stages.append((step, []))
            names |= {step.name} - {""}
        elif stages:
            stages[-1][1].append(step)
        elif isinstance(step, Arg):
            global_args.append(step)
        else:
            raise step.error("a Containerfile begins with FROM; only ARG may stand before it")
    if not stages:
        raise ContainerfileError(Place(name, 1), "", "it has no instructions: it is to begin with FROM IMAGE")
    return Containerfile(
        name,
        read.directives,
        tuple(global_args),
        tuple(Stage(base.name, index, base, tuple(steps)) for index, (base, steps) in enumerate(stages)),
        tuple(warnings),
    )


def parse_trigger(text: str, at: Place) -> Instruction:
    """The instruction of an ONBUILD, as images have it in their configuration."""
    read = lines.read(text.encode(errors="surrogateescape"), at.file)
    if len(read.lines) != 1:
        raise ContainerfileError(at, "ONBUILD", f"{text[:100]!r} is not one instruction")
    line = read.lines[0]
    step = _instruction(LogicalLine(at.line, line.text, line.heredocs, line.raw_heredocs), at.file, "\\", [])
    if step.keyword in _NOT_TRIGGERS:
        raise ContainerfileError(at, "ONBUILD", f"{step.keyword} cannot be the instruction of an ONBUILD")
    return step


class _Source:
    """One instruction being read: its keyword is known, its options are taken off."""

    def __init__(self, line: LogicalLine, name: str, escape: str, warnings: list[str]) -> None:
        self.at = Place(name, line.number)
        self.text = line.text
        self.escape = escape
        self.heredocs = line.heredocs
        self.raw_heredocs = line.raw_heredocs
        self.warnings = warnings
        keyword, _, rest = _partition(line.text)
        self.keyword = keyword.upper()
        self.flags = Flags(self.at, self.keyword)
        self.whole = rest
        self.rest = rest

    def error(self, problem: str) -> ContainerfileError:
        return ContainerfileError(self.at, self.keyword, problem)

    def take_flags(self) -> None:
        self.rest = split_flags(self.rest, self.flags, self.escape)

    def words(self) -> list[str]:
        return words.split(self.rest, self.escape)

    def json(self) -> tuple[str, ...] | None:
        """The rest as a JSON array of strings; None if it is something else."""
        found = words.json_array(self.rest)
        if found is None:
            if self.rest.startswith(("['", '["')):
                self.warnings.append(
                    f"{self.at}: {self.keyword}: it begins like the JSON form and is none, so it is read as it stands: "
                    'that form is ["a", "b"], with double quotes'
                )
            return None
        strings = tuple(word for word in found if isinstance(word, str))
        if len(strings) < len(found):
            raise self.error('in the JSON form everything is a string in double quotes: ["a", "b"]')
        if any("\0" in word or not _is_text(word) for word in strings):
            raise self.error("a string of the JSON form has a character that no file name and no argument has")
        return strings

    def whole_text(self, what: str) -> str:
        if not self.rest:
            raise self.error(f"it needs {what}")
        return self.rest


def _partition(text: str) -> tuple[str, str, str]:
    parts = re.split(rf"[{words.SPACE}]+", text, maxsplit=1)
    return parts[0], " ", parts[1] if len(parts) > 1 else ""


def _is_text(word: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _instruction(line: LogicalLine, name: str, escape: str, warnings: list[str]) -> Instruction:
    source = _Source(line, name, escape, warnings)
    reader = _READERS.get(source.keyword)
    if reader is None:
        shown = source.keyword[:40]
        raise ContainerfileError(source.at, "", f"there is no instruction {shown}{suggestion(shown, _READERS)}")
    source.take_flags()
    return reader(source)


def _from(source: _Source) -> From:
    found = source.words()
    if len(found) not in (1, 3) or (len(found) == 3 and found[1].upper() != "AS"):
        raise source.error("it is to be FROM [--platform=PLATFORM] IMAGE [AS NAME]")
    name = found[2].lower() if len(found) == 3 else ""
    if name and (not _STAGE_NAME.fullmatch(name) or name == "scratch"):
        raise source.error(
            f"a stage cannot be called {found[2]!r}: names are letters, digits, - _ . and begin with a letter"
        )
    return From(
        at=source.at,
        text=source.text,
        escape=source.escape,
        image=found[0],
        platform=source.flags.text("platform"),
        name=name,
    )


def _command(source: _Source) -> tuple[tuple[str, ...], bool]:
    """The JSON form, or one text for the shell."""
    found = source.json()
    if found is not None:
        return found, False
    return ((source.rest,) if source.rest else ()), True


def _run(source: _Source) -> Run:
    network = source.flags.text("network", "default").lower()
    if network not in ("default", "none", "host"):
        raise source.error(f"--network is to be default, none or host, and is {network!r}")
    security = source.flags.text("security", "sandbox").lower()
    if security not in ("sandbox", "insecure"):
        raise source.error(f"--security is to be sandbox or insecure, and is {security!r}")
    mounts = tuple(parse_mount(source.flags, text) for text in source.flags.many("mount"))
    command, shell = _command(source)
    if not command:
        raise source.error('it needs a command: RUN make, or RUN ["make"]')
    script = ""
    if source.heredocs:
        command, script = _with_documents(command[0], source)
    return Run(
        at=source.at,
        text=source.text,
        escape=source.escape,
        command=command,
        shell=shell,
        script=script,
        mounts=mounts,
        network=network,
        security=security,
    )


def _with_documents(command: str, source: _Source) -> tuple[tuple[str, ...], str]:
    """A here-document alone is the commands themselves, or a program; others are the shell's to read."""
    if words.here_document(command.strip(words.SPACE)) is not None and len(source.heredocs) == 1:
        content = source.heredocs[0].content
        if content.startswith("#!"):
            return (), content
        if not content.strip():
            raise source.error(f"the here-document {source.heredocs[0].name} is empty: it is to have commands")
        return (content,), ""
    return (command + "\n" + source.raw_heredocs.removesuffix("\n"),), ""


def _copy(source: _Source) -> Copy:
    flags = source.flags
    found = source.json()
    listed = source.words() if found is None else list(found)
    if len(listed) < 2:
        raise source.error(f"it needs a source and a target: {source.keyword} SOURCE… TARGET")
    *sources, target = listed
    heredocs: tuple[HereDocument, ...] = ()
    if found is None:
        if words.here_document(target) is not None:
            raise source.error("a here-document is a source; after it comes the target: COPY <<EOF /file")
        heredocs = source.heredocs
        sources = [word for word in sources if words.here_document(word) is None]
    common = {
        "at": source.at,
        "text": source.text,
        "escape": source.escape,
        "sources": tuple(sources),
        "target": target,
        "heredocs": heredocs,
        "chown": flags.text("chown"),
        "chmod": flags.text("chmod"),
        "link": bool(flags.bool("link")),
        "excludes": flags.many("exclude"),
        "json": found is not None,
    }
    if source.keyword == "ADD":
        return Add(
            **common,  # type: ignore[arg-type]
            checksum=flags.text("checksum"),
            keep_git_dir=bool(flags.bool("keep-git-dir")),
            unpack=flags.bool("unpack"),
        )
    from_ = flags.text("from")
    if "$" in from_:
        raise source.error(f"--from={from_} cannot have a variable: name a stage FROM the image, and that stage here")
    if from_ and heredocs:
        raise source.error("a here-document is not in a stage or image: take it or --from out")
    return Copy(**common, from_=from_, parents=bool(flags.bool("parents")))  # type: ignore[arg-type]


def _pairs(source: _Source) -> tuple[tuple[str, str], ...]:
    """`name=value …`, or the old form `name value`, where the value is all that follows."""
    found = source.words()
    if not found:
        raise source.error(f"it is to be {source.keyword} NAME=VALUE …")
    if "=" not in found[0]:
        name, _, value = _partition(source.rest)
        if not value:
            raise source.error(f"{name} has no value: it is to be {source.keyword} {name}=VALUE")
        return ((name, value),)
    pairs = []
    for word in found:
        name, equals, value = word.partition("=")
        if not equals:
            raise source.error(f"{word!r} has no =: it is to be NAME=VALUE, in quotes where there is white space in it")
        if not name:
            raise source.error(f"{word!r} has no name before the =")
        pairs.append((name, value))
    return tuple(pairs)


def _env(source: _Source) -> Env:
    return Env(at=source.at, text=source.text, escape=source.escape, pairs=_pairs(source))


def _label(source: _Source) -> Label:
    return Label(at=source.at, text=source.text, escape=source.escape, pairs=_pairs(source))


def _arg(source: _Source) -> Arg:
    pairs: list[tuple[str, str | None]] = []
    for word in source.words():
        name, equals, value = word.partition("=")
        if not name:
            raise source.error(f"{word!r} has no name before the =")
        pairs.append((name, value if equals else None))
    if not pairs:
        raise source.error("it is to be ARG NAME or ARG NAME=DEFAULT")
    return Arg(at=source.at, text=source.text, escape=source.escape, pairs=tuple(pairs))


def _workdir(source: _Source) -> Workdir:
    return Workdir(at=source.at, text=source.text, escape=source.escape, path=source.whole_text("a directory"))


def _user(source: _Source) -> User:
    return User(at=source.at, text=source.text, escape=source.escape, user=source.whole_text("a user: USER NAME[:GROUP]"))


def _stop_signal(source: _Source) -> StopSignal:
    signal = source.whole_text("a signal, like SIGTERM or 15")
    return StopSignal(at=source.at, text=source.text, escape=source.escape, signal=signal)


def _maintainer(source: _Source) -> Maintainer:
    return Maintainer(at=source.at, text=source.text, escape=source.escape, name=source.whole_text("a name"))


def _expose(source: _Source) -> Expose:
    found = source.words()
    if not found:
        raise source.error("it needs a port: EXPOSE 80/tcp")
    return Expose(at=source.at, text=source.text, escape=source.escape, ports=tuple(found))


def _volume(source: _Source) -> Volume:
    found = source.json()
    paths = source.words() if found is None else list(found)
    if not paths or not all(path.strip() for path in paths):
        raise source.error("it needs a directory: VOLUME /data")
    return Volume(at=source.at, text=source.text, escape=source.escape, paths=tuple(paths), json=found is not None)


def _entrypoint(source: _Source) -> Entrypoint:
    command, shell = _command(source)
    return Entrypoint(at=source.at, text=source.text, escape=source.escape, command=command, shell=shell and bool(command))


def _cmd(source: _Source) -> Cmd:
    command, shell = _command(source)
    return Cmd(at=source.at, text=source.text, escape=source.escape, command=command, shell=shell and bool(command))


def _shell(source: _Source) -> Shell:
    found = source.json()
    if not found:
        raise source.error('it needs the JSON form: SHELL ["/bin/bash", "-c"]')
    return Shell(at=source.at, text=source.text, escape=source.escape, command=found)


def _healthcheck(source: _Source) -> HealthCheck:
    kind, _, rest = _partition(source.rest)
    if kind.upper() == "NONE":
        if rest:
            raise source.error("after NONE there is nothing")
        return HealthCheck(at=source.at, text=source.text, escape=source.escape, command=(), shell=False)
    if kind.upper() != "CMD":
        raise source.error("it is to be HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE")
    source.rest = rest
    command, shell = _command(source)
    if not command:
        raise source.error("after CMD there is to be a command")
    retries = source.flags.text("retries", "0")
    if not re.fullmatch("[0-9]{1,9}", retries):
        raise source.error(f"--retries is to be a number, and is {retries!r}")
    durations = {name: source.flags.text(name.replace("_", "-")) for name in _DURATIONS}
    return HealthCheck(
        at=source.at,
        text=source.text,
        escape=source.escape,
        command=command,
        shell=shell,
        retries=int(retries),
        **{name: parse_duration(source.flags, f"--{name.replace('_', '-')}", text) for name, text in durations.items()},
    )


_DURATIONS: Final = ("interval", "timeout", "start_period", "start_interval")


def _onbuild(source: _Source) -> OnBuild:
    keyword = _partition(source.rest)[0].upper()
    if not keyword:
        raise source.error("it needs an instruction: ONBUILD RUN make")
    if keyword in _NOT_TRIGGERS:
        raise source.error(f"{keyword} cannot be the instruction of an ONBUILD")
    line = LogicalLine(source.at.line, source.rest, source.heredocs, source.raw_heredocs)
    _instruction(line, source.at.file, source.escape, source.warnings)
    trigger = source.rest + ("\n" + source.raw_heredocs.removesuffix("\n") if source.raw_heredocs else "")
    return OnBuild(at=source.at, text=source.text, escape=source.escape, trigger=trigger)


_READERS: Final[dict[str, Callable[[_Source], Instruction]]] = {
    "ADD": _copy,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
