"""What a build is asked for, and what all its stages work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imagesvc.containerfile.instructions import Instruction
from imagesvc.containerfile.scopes import Platforms

if TYPE_CHECKING:
    from runtime.build.context import Context
    from runtime.build.copying import Copier
    from runtime.build.progress import Progress
    from runtime.build.session import Session


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of each step's container; 0 and nothing for what is not asked for."""

    memory: int = 0
    """Bytes."""
    cpus: float = 0
    shm_size: int = 0
    """Bytes."""
    hosts: tuple[str, ...] = ()
    """Lines of /etc/hosts."""
    ulimits: tuple[str, ...] = ()
    """NAME=SOFT[:HARD]"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked of a build besides its Containerfile."""

    platforms: Platforms
    arguments: Mapping[str, str] = field(default_factory=dict)
    """--build-arg."""
    target: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    squash: bool = False
    """One layer has all that is new."""
    network: str = "default"
    """Of steps that do not say otherwise: default (a pod's), none or host."""
    allow_host_network: bool = False
    """Steps may ask for the node's."""
    conditions: Conditions = field(default_factory=Conditions)
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    agents: Mapping[str, str] = field(default_factory=dict)
    """Sockets of SSH agents by their ids."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the stages of a build have in common."""

    session: Session
    copier: Copier
    context: Context
    wishes: Wishes
    progress: Progress
    source: Callable[[str, int, Instruction], tuple[str, str]]
    """What `--from` and `from=` of a stage mean: an image's id, empty for no files, and what it is called in messages. Waits
    for a stage that is not done."""
