"""What fingers know from docker: `--flag=true`, flags that change nothing here, and commands that crisp lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

_YES: Final = ("true", "t", "1")
_NO: Final = ("false", "f", "0")

LACKING: Final = {
    "create": "`crisp run -d` makes a container and starts it",
    "pause": "the CRI has no pause",
    "unpause": "the CRI has no pause",
    "rename": "the CRI has no other name for what is there",
    "update": "`crictl update` changes the limits of what runs",
    "export": "`crisp commit` and `crisp save` keep a container's files, `crisp cp CONTAINER:/ -` writes them as an archive",
    "import": "`crisp image import` and `crisp load` read archives of images, `crisp image add-rootfs` takes a directory",
    "login": "`crisp pull --user NAME` asks for a password, and credentials of this node are in crisp.toml",
    "logout": "there is no login: credentials of this node are in crisp.toml",
    "search": "registries are searched by their own pages",
    "network": "there is the node's one network of pods: `crisp run --network pod|host|none`",
    "volume": "volumes are directories: `crisp run -v DIR:PLACE`",
    "compose": "several containers share a pod by `crisp run --pod`",
    "buildx": "`crisp build` is what builds",
    "builder": "`crisp build` is what builds, and `crisp system prune` removes what it keeps",
}
"""docker's, and what to do in their place."""


class Group(click.Group):
    """Commands whose options may be written as Go's are: `--rm=true`, `-e=A=b`."""

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, and its words in the form that click knows."""
        name, command, rest = super().resolve_command(context, words)
        return name, command, rest if command is None or isinstance(command, click.Group) else plain(command, rest)


def plain(command: click.Command, words: list[str]) -> list[str]:
    """Without values of flags: a flag that is true, or nothing. Without `=` between a letter and its value."""
    flags, takers = dict[str, click.Option](), set[str]()
    for option in command.params:
        if isinstance(option, click.Option):
            if option.is_flag:
                flags.update(dict.fromkeys(option.opts, option))
            else:
                takers.update(option.opts)
    mixed = command.context_settings.get("allow_interspersed_args", command.allow_interspersed_args)
    found, rest = list[list[str]](), list(words)  # each with its value, if that is a word of its own
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--" or (not word.startswith("-") and not mixed):
            found.append([word, *rest])
            break
        if equals and name in flags and value.lower() in _NO:
            off = flags[name].secondary_opts
            found = [*found, [off[0]]] if off else [earlier for earlier in found if earlier[0] not in flags[name].opts]
            continue
        found.append([name if equals and name in flags and value.lower() in _YES else _letters(word, set(flags), takers)])
        if rest and _waits(word, takers):
            found[-1].append(rest.pop(0))
    return [word for some in found for word in some]


def _letters(word: str, flags: set[str], takers: set[str]) -> str:
    """Of a word of letters, such as -itv=/a:/b or -it=false, one that means the same here: without the `=`."""
    if word.startswith("--") or "=" not in word:
        return word
    for index, letter in enumerate(word[1:], 1):
        before, after = word[: index + 1], word[index + 1 :]
        if f"-{letter}" in takers:
            return before + (after[1:] if after.startswith("=") and after != "=" else after)
        if after[:1] == "=" and f"-{letter}" in flags and after[1:].lower() in (*_YES, *_NO):
            return before if after[1:].lower() in _YES else word[:index]
    return word


def _waits(word: str, takers: set[str]) -> bool:
    """Whether the word after it is its value: of `--name`, and of the last of several letters, as in -itv."""
    if word.startswith("--") or len(word) < 2 or word[0] != "-":
        return word in takers
    first = next((index for index, letter in enumerate(word[1:], 2) if f"-{letter}" in takers), 0)
    return first == len(word)


def unneeded(*names: str, is_flag: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that are taken and change nothing: what they ask for is so, or there is nothing for them to change."""
    return click.option(*names, is_flag=is_flag, hidden=True, expose_value=False)


def refuse_lacking(name: str) -> None:
    """End the command if it is one of docker's that there is not."""
    if name in LACKING:
        from runtime.cli.output import fail  # noqa: PLC0415  the list of commands needs none

        fail(f"there is no `crisp {name}`: {LACKING[name]}", 2)
