"""A Containerfile's stages: those that are needed, each in a thread, each after what it takes something from.

A step's key is looked for first (`localhost/crisp-build:KEY`). RUN is a container, COPY a tree that is written to, and the
difference becomes a layer; everything else changes the configuration alone, and is written down with the next layer or at
the end. The first failure ends the others: the lease is given back, and with it their containers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final

from imagesvc.containerfile import parser
from imagesvc.containerfile.errors import Place
from imagesvc.containerfile.instructions import Containerfile, Instruction, Label
from imagesvc.containerfile.scopes import Scope, unused
from imagesvc.containerfile.stages import Graph
from runtime.build.image_state import ImageState
from runtime.build.progress import ENDED
from runtime.build.stage import Stage
from runtime.build.wishes import Wishes, Workshop
from runtime.client import CallError

if TYPE_CHECKING:
    from runtime.build.context import Context
    from runtime.build.copying import Copier
    from runtime.build.progress import Progress
    from runtime.build.session import Session


LOOK_SECONDS: Final = 0.5


class Build:
    """One build."""

    def __init__(
        self,
        session: Session,
        copier: Copier,
        context: Context,
        containerfile: Containerfile,
        wishes: Wishes,
        progress: Progress,
        pull: Callable[[str, int], str],
    ) -> None:
        """`pull` brings an image here, if need be, as the step of this number, and says its id.

        ContainerfileError for stages that cannot be built.
        """
        self._session, self._wishes, self._progress, self._pull = session, wishes, progress, pull
        self._file = containerfile
        self._shop = Workshop(session, copier, context, wishes, progress, self._source)
        self._globals = Scope.of_globals(containerfile, wishes.arguments, wishes.platforms, wishes.target)
        self._bases = [self._globals.expand(stage.base) for stage in containerfile.stages]
        self._graph = Graph(containerfile, self._bases)
        self._seed = f"{session.epoch} {wishes.platforms.target}"
        self._stages: dict[int, Future[Stage]] = {}
        self._images: dict[str, Future[str]] = {}
        self._lock = threading.Lock()
        """For `_images`."""

    def run(self) -> str:
        """Build what is wanted; the image's id."""
        for name in unused(self._file, self._wishes.arguments):
            self._progress.warn(f"--build-arg {name}: no ARG takes it")
        for warning in self._file.warnings:
            self._progress.warn(warning)
        target = self._graph.find(self._wishes.target)
        needed = self._graph.needed(target)
        with ThreadPoolExecutor(len(needed), thread_name_prefix="stage") as threads:
            try:
                for index in needed:
                    self._stages[index] = threads.submit(self._stage, index, last=index == target)
                # Not for ever at once: Python does not see a signal that comes just before it begins to wait.
                while wait(self._stages.values(), LOOK_SECONDS, return_when=FIRST_EXCEPTION).not_done:
                    if any(one.done() and one.exception() is not None for one in self._stages.values()):
                        break
                self._raise_failure()
                done = self._stages[target].result()
                image_id = done.finish()
                base = done.state.base
                if not self._wishes.squash or image_id == base:
                    return image_id
                return self._squashed(image_id, base, self._bases[target])
            except BaseException:
                self._session.end()
                self._shop.copier.close()  # so that no thread copies to the end what nobody wants any more
                raise

    def _squashed(self, image_id: str, base: str, step: Instruction) -> str:
        """An image of the same files and configuration, with one layer above the base image; its id."""
        session = self._session
        shown = self._progress.begin("one layer of all that is new")
        made, below = session.find(image_id), session.find(base) if base else None
        assert made is not None, "the lease holds it"
        before = _lines_of(below.document) if below is not None else 0
        history = [
            {name: value for name, value in line.items() if name not in ("created", "empty_layer")}
            for line in made.document["history"][before:]
        ]
        newest = None
        if below is not None and _is_plain(below.document) and session.epoch is not None:
            newest = session.epoch * 1_000_000_000
        with session.mounted(base, writable=True) as tree, session.mounted(image_id) as wanted:
            changed = self._shop.copier.become(step, tree.directory, wanted.directory, newest)
            squashed = session.commit(base, made.document, history, [], mount=tree.id if changed else "")
        self._progress.end(shown, "done")
        return squashed

    def _raise_failure(self) -> None:
        """The failure that the others follow from, if there is one."""
        ended = [one for one in self._stages.values() if one.done()]
        failures = [error for one in ended if (error := one.exception()) is not None]
        own = [error for error in failures if not isinstance(error, _OtherFailed)]
        for error in own or failures:
            raise error

    def _stage(self, index: int, *, last: bool) -> Stage:
        state, scope = self._base(index)
        said, base = self._file.stages[index], self._bases[index]
        triggers = [
            parser.parse_trigger(text, Place(f"ONBUILD of {base.image}", number))
            for number, text in enumerate(state.config.pop("OnBuild", None) or (), 1)
        ]
        name = said.name or ("" if len(self._file.stages) == 1 else f"stage-{index}")
        stage = Stage(self._shop, f"{name} " if name else "", index, state, scope)
        labels = [Label(at=base.at, text=f"LABEL {k}={v}", pairs=((k, v),)) for k, v in self._wishes.labels.items()]
        stage.run([*triggers, *said.instructions])
        for label in labels if last else ():
            stage.state.enter(label, stage.scope.environment)
        return stage

    def _base(self, index: int) -> tuple[ImageState, Scope]:
        """What a stage begins with."""
        base, said, target = self._graph.base(index), self._bases[index], self._wishes.platforms.target
        if isinstance(base, int):
            earlier = self._done(base)
            return earlier.state.copy(), self._globals.for_stage(earlier.scope.environment, earlier.scope)
        if base == "scratch":
            state = ImageState.scratch(target, self._seed)
            return state, self._globals.for_stage(state.environment)
        image_id = self._image(base, said)
        found = self._session.find(image_id)
        if found is None:
            raise said.error(f"image {base} was removed meanwhile")
        wanted, there = said.platform or str(target), f"{found.document.get('os')}/{found.document.get('architecture')}"
        if not f"{wanted}/".startswith(f"{there}/"):
            raise said.error(f"{base} is here for {there}, and {wanted} is wanted: there is one platform on a node")
        state = ImageState(image_id, found.document, self._seed)
        return state, self._globals.for_stage(state.environment)

    def _image(self, name: str, step: Instruction) -> str:
        """The id of an image that is here, or is fetched now."""
        shown = self._progress.begin(f"image {name}")
        with self._lock:
            first = name not in self._images
            found = self._images.setdefault(name, Future())
        try:
            if first:
                self._fetch(name, found, shown)
            image_id = found.result()
        except CallError as error:
            failure = step.error(error.message)
            self._progress.end(shown, ENDED if self._session.ended else failure.message)
            raise failure from None
        self._progress.end(shown, "done")
        return image_id

    def _fetch(self, name: str, found: Future[str], shown: int) -> None:
        """For all the stages that need it."""
        try:
            found.set_result(self._pull(name, shown))
        except BaseException as error:
            found.set_exception(error)

    def _done(self, index: int) -> Stage:
        """Another stage, once it is done."""
        try:
            return self._stages[index].result()
        except Exception as error:
            raise _OtherFailed from error

    def _source(self, name: str, index: int, step: Instruction) -> tuple[str, str]:
        """What `--from` or `from=` means in the stage `index`: an image's id, and what it is called."""
        source = self._graph.source(name, index, step)
        if isinstance(source, str):
            return ("", "scratch") if source == "scratch" else (self._image(source, step), f"image {source}")
        if source not in self._stages:  # only what an ONBUILD says is not known beforehand
            raise step.error(f"the stage {name} is not one that this build needs otherwise: name an image")
        return self._done(source).state.image_id, f"stage {name}"


def _lines_of(document: Mapping[str, Any]) -> int:
    """How many lines of history an image brings to what is made of it: the daemon gives some to a base without any."""
    layers = (document.get("rootfs") or {}).get("diff_ids") or ()
    return len(document.get("history") or layers) + _is_plain(document)


def _is_plain(document: Mapping[str, Any]) -> bool:
    """Whether it is an image of a plain directory, which becomes a layer in what is made of it."""
    return "crisp.directory" in document


class _OtherFailed(Exception):
    """A stage that this one needs has failed, and its failure says why."""
