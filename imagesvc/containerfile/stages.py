"""Which stage needs which: FROM, COPY --from and RUN --mount from=, by name or number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from imagesvc.containerfile.instructions import Containerfile, Copy, From, Instruction, Run
from proto.errors import invalid


class Graph:
    """The stages of a file and what each is made of. Names of stages are the same in any case."""

    def __init__(self, containerfile: Containerfile, bases: Sequence[From]) -> None:
        """`bases` are the stages' FROM, expanded. ContainerfileError for a stage that needs itself or a number too high."""
        self._stages = containerfile.stages
        self._name = containerfile.name
        self._bases = tuple(bases)
        self._names = {stage.name: stage.index for stage in self._stages if stage.name}
        self._dependencies = tuple(self._of_stage(stage.index) for stage in self._stages)
        for index in self._unordered():
            self._refuse_circles(index)

    def base(self, index: int) -> int | str:
        """What a stage is based on: an earlier stage, or an image (`scratch` is none)."""
        base = self._bases[index]
        earlier = self._names.get(base.image.lower(), len(self._stages))
        return earlier if earlier < index else base.image

    def source(self, name: str, index: int, step: Instruction) -> int | str:
        """What `--from` or `from=` in the stage `index` means: a stage, or an image."""
        if name.isascii() and name.isdigit():
            if len(name) > 9 or int(name) >= len(self._stages):
                raise step.error(f"there is no stage {name}: they are 0 to {len(self._stages) - 1}")
            return int(name)
        found = self._names.get(name.lower())
        return name if found is None else found

    def dependencies(self, index: int) -> frozenset[int]:
        """The stages that a stage needs itself."""
        return self._dependencies[index]

    def images(self, index: int) -> tuple[str, ...]:
        """The images that a stage needs itself, each once; not `scratch`."""
        found = [self.base(index), *(source for source, _step in self._sources(index))]
        return tuple(dict.fromkeys(name for name in found if isinstance(name, str) and name != "scratch"))

    def find(self, target: str = "") -> int:
        """The stage that --target names, by name or number; the last one if it names none. INVALID_ARGUMENT."""
        if not target:
            return len(self._stages) - 1
        found = self._names.get(target.lower())
        if found is None and target.isascii() and target.isdigit() and len(target) < 10 and int(target) < len(self._stages):
            found = int(target)
        if found is None:
            names = ", ".join(self._names) or "none that has a name"
            raise invalid(f"{self._name} has no stage {target!r}; there is {names}")
        return found

    def needed(self, index: int) -> list[int]:
        """The stages that are to be built for this one, each after what it needs, itself last."""
        order: dict[int, None] = {}
        waiting = [(index, False)]
        while waiting:
            stage, ready = waiting.pop()
            if ready:
                order.setdefault(stage)
            elif stage not in order:
                waiting.append((stage, True))
                waiting += [(other, False) for other in sorted(self._dependencies[stage], reverse=True)]
        return list(order)

    def _sources(self, index: int) -> Iterator[tuple[int | str, Instruction]]:
        for step in self._stages[index].instructions:
            for name in froms(step):
                yield self.source(name, index, step), step

    def _of_stage(self, index: int) -> frozenset[int]:
        base = self.base(index)
        found = {base} if isinstance(base, int) else set()
        for source, step in self._sources(index):
            if source == index:
                raise step.error("a stage cannot take files from itself")
            if isinstance(source, int):
                found.add(source)
        return frozenset(found)

    def _unordered(self) -> list[int]:
        """The stages that are in a circle or need one that is."""
        needing: dict[int, list[int]] = {}
        missing = [len(found) for found in self._dependencies]
        for index, found in enumerate(self._dependencies):
            for other in found:
                needing.setdefault(other, []).append(index)
        ready = [index for index, count in enumerate(missing) if not count]
        while ready:
            for index in needing.get(ready.pop(), ()):
                missing[index] -= 1
                if not missing[index]:
                    ready.append(index)
        return [index for index, count in enumerate(missing) if count]

    def _refuse_circles(self, index: int) -> None:
        reached: set[int] = set()
        waiting = [*self._dependencies[index]]
        while waiting:
            stage = waiting.pop()
            if stage == index:
                raise self._bases[index].error("the stage needs itself, by way of others: --from is to name earlier stages")
            if stage not in reached:
                reached.add(stage)
                waiting += self._dependencies[stage]


def froms(step: Instruction) -> tuple[str, ...]:
    """The stages and images that an instruction names."""
    if isinstance(step, Copy):
        return (step.from_,) if step.from_ else ()
    if isinstance(step, Run):
        return tuple(mount.from_ for mount in step.mounts if mount.from_)
    return ()
