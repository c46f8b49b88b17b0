"""What is wrong with a Containerfile: file, line, instruction, and what would be right."""

from __future__ import annotations

from dataclasses import dataclass

from proto.errors import Code, CrispError


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instruction stands: the file's name as its user knows it, and the number of its first line, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class ContainerfileError(CrispError):
    """INVALID_ARGUMENT; its message is `FILE:LINE: INSTRUCTION: what is wrong and what would be right`."""

    def __init__(self, at: Place, instruction: str, problem: str) -> None:
        super().__init__(Code.INVALID_ARGUMENT, ": ".join(part for part in (str(at), instruction, problem) if part))
        self.at = at
        self.instruction = instruction
        self.problem = problem
