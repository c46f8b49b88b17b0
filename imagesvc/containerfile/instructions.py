"""The instructions of a Containerfile, as docker's Dockerfile reference (syntax 1.x) has them.

    Containerfile ─▶ Stage ─▶ From, then Instruction: Run Copy Add Env Arg Label Workdir User Expose Volume
                              Entrypoint Cmd Shell StopSignal HealthCheck OnBuild Maintainer

Values are raw: quotes, escapes and variables stand in them as they do in the file. `expansion.expand` gives the same
instruction with the variables put in and the quotes gone; then the values are what they mean. What is in the JSON form or is
the command of a shell has no quotes to be taken away, and no variables of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imagesvc.containerfile.errors import ContainerfileError, Place


@dataclass(frozen=True, slots=True)
class HereDocument:
    """`<<NAME` and the lines up to NAME. `content` ends with a newline, if it has anything; `<<-` takes tabs off."""

    name: str
    content: str
    expand: bool
    """Variables are to be put in: the name stood without quotes. For COPY and ADD; a shell sees to its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """What all have in common."""

    keyword: ClassVar[str] = ""

    at: Place
    text: str
    """The instruction as one line: continued lines joined, here-documents left out."""
    escape: str = "\\"
    """What takes the meaning from the next character in this file."""

    def error(self, problem: str) -> ContainerfileError:
        """An error at this instruction."""
        return ContainerfileError(self.at, self.keyword, problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class From(Instruction):
    """The base of a stage: an image, an earlier stage, or `scratch`."""

    keyword: ClassVar[str] = "FROM"

    image: str
    platform: str = ""
    """--platform, os/architecture[/variant]."""
    name: str = ""
    """AS, in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMount:
    """RUN --mount. What does not go with the type is empty or None; checked by the parser.

    Variables may stand in source, target, id and env.
    """

    type: str = "bind"
    """bind, cache, tmpfs, secret or ssh."""
    source: str = ""
    """bind, cache: a path in `from_`."""
    target: str = ""
    """Where; empty for a secret or socket that goes where it is by default (/run/secrets/ID, /run/buildkit/ssh_agent.N)."""
    from_: str = ""
    """bind, cache: a stage's name or number, or an image; empty for the context, or an empty directory (cache)."""
    readonly: bool = False
    """As asked for, else the type's own: a bind is read-only, a cache and a tmpfs are not."""
    id: str = ""
    """cache, secret, ssh; empty for the default one: the target, the target's last name, `default`."""
    sharing: str = "shared"
    """cache: shared, private or locked."""
    required: bool = False
    """secret, ssh: it is an error if the user has given none."""
    env: str = ""
    """secret: the variable that gets it."""
    mode: int | None = None
    """cache, secret, ssh: permissions, if not 0755, 0400, 0600."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    """tmpfs: bytes, 0 for the kernel's own limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Instruction):
    """A command in a container.

    With `shell`, `command` is one text for the SHELL; here-documents are in it already. A here-document that is the entire
    command and begins with `#!` is `script` instead: a file to be executed, and `command` is empty.
    """

    keyword: ClassVar[str] = "RUN"

    command: tuple[str, ...]
    shell: bool
    script: str = ""
    mounts: tuple[RunMount, ...] = ()
    network: str = "default"
    """default, none or host."""
    security: str = "sandbox"
    """sandbox or insecure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy(Instruction):
    """Files from the context, another stage or an image."""

    keyword: ClassVar[str] = "COPY"

    sources: tuple[str, ...]
    target: str
    heredocs: tuple[HereDocument, ...] = ()
    """Files that stand in the Containerfile; further sources."""
    from_: str = ""
    """A stage's name or number, or an image; empty for the context. ADD has none."""
    chown: str = ""
    chmod: str = ""
    """Octal or symbolic."""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()
    json: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Add(Copy):
    """Like COPY, and URLs, and archives that are unpacked."""

    keyword: ClassVar[str] = "ADD"

    checksum: str = ""
    """ALGORITHM:HEX of what the one URL gives."""
    keep_git_dir: bool = False
    unpack: bool | None = None
    """Unpack archives; None for the default: local ones, not those of URLs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Env(Instruction):
    """Variables of the image."""

    keyword: ClassVar[str] = "ENV"

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arg(Instruction):
    """Variables of the build, each with its default or None."""

    keyword: ClassVar[str] = "ARG"

    pairs: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Label(Instruction):
    """Labels of the image."""

    keyword: ClassVar[str] = "LABEL"

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workdir(Instruction):
    """The working directory from here on; relative to the last one."""

    keyword: ClassVar[str] = "WORKDIR"

    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class User(Instruction):
    """Who runs what comes: `user[:group]`."""

    keyword: ClassVar[str] = "USER"

    user: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Expose(Instruction):
    """Ports, `N[-M][/protocol]`; once expanded, one each, `N/protocol`."""

    keyword: ClassVar[str] = "EXPOSE"

    ports: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume(Instruction):
    """Directories that are volumes."""

    keyword: ClassVar[str] = "VOLUME"

    paths: tuple[str, ...]
    json: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrypoint(Instruction):
    """The image's entrypoint; with `shell` one text for the SHELL. Empty takes it away."""

    keyword: ClassVar[str] = "ENTRYPOINT"

    command: tuple[str, ...]
    shell: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cmd(Instruction):
    """The image's command; with `shell` one text for the SHELL. Empty takes it away."""

    keyword: ClassVar[str] = "CMD"

    command: tuple[str, ...]
    shell: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Shell(Instruction):
    """What runs the commands that are texts, from here on."""

    keyword: ClassVar[str] = "SHELL"

    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StopSignal(Instruction):
    """The signal that ends a container of the image."""

    keyword: ClassVar[str] = "STOPSIGNAL"

    signal: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck(Instruction):
    """A command that says how a container is. Durations in nanoseconds, 0 for what is inherited or the default."""

    keyword: ClassVar[str] = "HEALTHCHECK"

    command: tuple[str, ...]
    """Empty for NONE."""
    shell: bool
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class OnBuild(Instruction):
    """An instruction for builds based on this image: its text, here-documents included, for `parser.parse_trigger`."""

    keyword: ClassVar[str] = "ONBUILD"

    trigger: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Maintainer(Instruction):
    """The author of the image (deprecated, but there)."""

    keyword: ClassVar[str] = "MAINTAINER"

    name: str


@dataclass(frozen=True, slots=True)
class Directives:
    """`# name=value` at the file's beginning; what is not there is empty."""

    syntax: str = ""
    escape: str = "\\"
    check: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """FROM and what follows it. The name is empty if it has none."""

    name: str
    index: int
    base: From
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Containerfile:
    """A file that was understood; it has at least one stage. `warnings` are for its author."""

    name: str
    directives: Directives
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()
