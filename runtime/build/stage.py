"""One stage: its instructions one after the other, each taken from the cache or done."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.instructions import Add, Arg, Copy, Instruction, Run, RunMount, Workdir
from proto.errors import CrispError
from runtime.build import run_mounts
from runtime.build.copying import Selection, Tree
from runtime.build.fetching import fetch_urls
from runtime.build.progress import ENDED
from runtime.build.run_step import Pod
from runtime.client import CallError, is_away

if TYPE_CHECKING:
    from imagesvc.containerfile.scopes import Scope
    from runtime.build.image_state import ImageState
    from runtime.build.wishes import Workshop

_SAID: Final = frozenset(("at", "text", "escape"))
"""Fields of an instruction that say where it stands, and not what is done."""


class Stage:
    """A stage in the making."""

    def __init__(self, shop: Workshop, name: str, index: int, state: ImageState, scope: Scope) -> None:
        self._shop = shop
        self._session = shop.session
        self._name = name
        self._index = index
        self._pods: dict[str, Pod] = {}
        """By their network."""
        self.state = state
        self.scope = scope

    def run(self, instructions: Sequence[Instruction]) -> None:
        """Go through them."""
        for number, raw in enumerate(instructions, 1):
            step = self.scope.enter(raw)
            if isinstance(step, Arg):
                continue
            shown = self._shop.progress.begin(f"[{self._name}{number}/{len(instructions)}] {step.text}")
            try:
                how = self._do(step, shown)
            except CallError as error:
                gone = is_away(error)
                said = "the daemon has ended: start the build again" if gone else error.message
                self._failed(shown, failure := step.error(said))
                raise failure from None
            except CrispError as failure:
                self._failed(shown, failure)
                raise
            self._shop.progress.end(shown, how)

    def _failed(self, shown: int, failure: CrispError) -> None:
        self._shop.progress.end(shown, ENDED if self._session.ended else failure.message)

    def _do(self, step: Instruction, shown: int) -> str:
        """Do a step, or take what was done before; how it was."""
        if isinstance(step, Run):
            return self._run(step, shown)
        if isinstance(step, Copy):
            return self._copy(step)
        self.state.enter(step, self.scope.environment)
        return self._directory(step) if isinstance(step, Workdir) else "done"

    def finish(self) -> str:
        """The image of all that was done."""
        self._write_down()
        return self.state.image_id

    def _write_down(self) -> None:
        """An image of all that was done, the configuration too."""
        if (self.state.changed or not self.state.image_id) and not self._known():
            self._commit()

    # The cache

    def _known(self) -> bool:
        """Whether there is an image of all that is done so far; it is taken."""
        if self._shop.wishes.no_cache:
            return False
        found = self._session.find(self.state.step_name)
        if found is not None:
            self.state.now_is(found.id)
        return found is not None

    def _commit(self, *, container: str = "", mount: str = "") -> None:
        state = self.state
        image_id = self._session.commit(
            state.image_id, state.document, state.history, [state.step_name], container=container, mount=mount
        )
        state.now_is(image_id)

    # WORKDIR, COPY, ADD

    def _directory(self, step: Workdir) -> str:
        """The directory is there from here on."""
        if self._known():
            return "cached"
        with self._session.mounted(self.state.image_id, writable=True) as tree:
            if self._shop.copier.make_directory(step, tree.directory, self.state.workdir):
                self._commit(mount=tree.id)
        return "done"

    def _copy(self, step: Copy) -> str:
        state, copier = self.state, self._shop.copier
        with ExitStack() as stack:
            tree = self._tree(step, stack)
            session = self._session
            fetched = fetch_urls(step, session.scratch, lambda: session.ended) if isinstance(step, Add) else ()
            selection = copier.select(step, tree, fetched)
            state.did(step, _meaning(step), selection.digest)
            state.note(step)
            if self._known():
                return "cached"
            # With --link too: a layer that knows nothing of those below would bring its own /tmp and /lib.
            root = stack.enter_context(self._session.mounted(state.image_id, writable=True))
            copier.put(selection, root.directory, root.directory, state.workdir)
            self._commit(mount=root.id)
        return "done"

    def _tree(self, step: Copy, stack: ExitStack) -> Tree:
        """Where files come from."""
        if not step.from_:
            context = self._shop.context
            return Tree(context.root, "the context", context.rules, keep_owners=False)
        image_id, called = self._shop.source(step.from_, self._index, step)
        directory = stack.enter_context(self._session.mounted(image_id)).directory
        return Tree(directory, called)

    # RUN

    def _run(self, step: Run, shown: int) -> str:
        self._check(step)
        state = self.state
        self._write_down()  # the container is to have the configuration of just now
        mounted = [self._mount_digest(step, mount) for mount in step.mounts]
        arguments = self.scope.arguments
        state.did(step, _meaning(step), mounted, sorted(arguments.items()))
        state.note(step)
        if self._known():
            return "cached"
        command = self._command(step)
        with ExitStack() as stack:
            wishes = self._shop.wishes
            sources = run_mounts.Sources(wishes.secrets, wishes.agents, self._image, self._context_of, self._fill)
            extras = run_mounts.prepare(step, self._session, sources, state.image_id, state.workdir, stack)
            environment = {**arguments, **self.scope.proxies}
            begun = self._pod(self._network(step))
            with begun.ran(state.image_id, command, environment, extras, self._show(shown)) as (container, code):
                if code:
                    raise step.error(f"the command ended with exit code {code}")
                self._commit(container=container)
        return "done"

    def _show(self, shown: int) -> Any:
        return lambda line: self._shop.progress.output(shown, line)

    def _check(self, step: Run) -> None:
        if step.security != "sandbox":
            raise step.error("--security=insecure: builds have no privileges here; what needs some can be run beforehand")
        if step.network == "host" and not self._shop.wishes.allow_host_network:
            raise step.error("--network=host: give `--allow network.host`, for it reaches all that listens on this node")

    def _network(self, step: Run) -> str:
        return self._shop.wishes.network if step.network == "default" else step.network

    def _command(self, step: Run) -> list[str]:
        if step.script:
            return [run_mounts.SCRIPT]
        return [*self.state.shell, *step.command] if step.shell else list(step.command)

    def _pod(self, network: str) -> Pod:
        if network not in self._pods:
            self._pods[network] = Pod(self._session, network, self._shop.wishes.conditions)
        return self._pods[network]

    def _mount_digest(self, step: Run, mount: RunMount) -> str:
        """What of a mount can change what the command makes."""
        if mount.type != "bind":
            return ""
        if mount.from_:
            return self._image(step, mount)
        return self._part_of_context(step, mount).digest

    def _part_of_context(self, step: Run, mount: RunMount) -> Selection:
        """What a bind without `from` shows."""
        context = self._shop.context
        tree = Tree(context.root, "the context", context.rules, keep_owners=False)
        try:
            return self._shop.copier.select(run_mounts.copy_of(step, mount), tree)
        except ContainerfileError as error:
            raise step.error(f"--mount: {error.problem}") from None

    def _image(self, step: Run, mount: RunMount) -> str:
        return self._shop.source(mount.from_, self._index, step)[0]

    def _fill(self, step: Run, mount: RunMount, place: str) -> None:
        """Put into a new cache what it begins with."""
        image_id, called = self._shop.source(mount.from_, self._index, step)
        wanted = Copy(at=step.at, text=step.text, sources=(mount.source or "/",), target="/")
        with self._session.mounted(image_id) as tree:
            try:
                selection = self._shop.copier.select(wanted, Tree(tree.directory, called))
                self._shop.copier.put(selection, place, tree.directory, "/")
            except ContainerfileError as error:
                raise step.error(f"--mount: {error.problem}") from None

    def _context_of(self, step: Run, mount: RunMount, stack: ExitStack) -> str:
        """A copy of a part of the context."""
        root = stack.enter_context(self._session.mounted("", writable=True)).directory
        selection = self._part_of_context(step, mount)
        try:
            self._shop.copier.put(selection, root, root, "/")
        except ContainerfileError as error:
            raise step.error(f"--mount: {error.problem}") from None
        alone = selection.items[0]["name"] if selection.items[0]["kind"] == "file" else ""
        return run_mounts.inside(root, posixpath.join("/source", alone), step)


def _meaning(step: Instruction) -> dict[str, Any]:
    """What an instruction says, wherever it stands."""
    return {name: value for name, value in asdict(step).items() if name not in _SAID}
