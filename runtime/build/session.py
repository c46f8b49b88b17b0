"""A build's lease on the daemon, and what it asks for under it; see HoldBuild in admin.proto.

When the connection ends, so does the lease, and all that was made under it: whatever happens to this process, nothing stays.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proto import admin_pb2 as admin
from proto.errors import Code
from runtime.client import CallError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from runtime.client import Client


@dataclass(frozen=True, slots=True)
class Found:
    """An image that is here."""

    id: str
    document: Mapping[str, Any]
    """Its configuration document."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """An image's files on this host."""

    id: str
    directory: str


class Session:
    """A build; use it as a context manager. Its methods may be called from any thread."""

    def __init__(self, client: Client, epoch: int | None) -> None:
        """`epoch`: seconds; nothing that is made is to be younger."""
        self.client = client
        self.epoch = epoch
        self.ended = False
        self._streams: list[Any] = []
        self._lease = client.admin.HoldBuild(admin.HoldBuildRequest())
        told = next(self._lease)
        threading.Thread(target=self._hold, daemon=True).start()
        self.id: str = told.build_id
        self.scratch: str = told.scratch
        """A directory of our own on disk, and one in memory."""
        self.memory: str = told.memory
        self.caches: str = told.caches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Give back all that there is; calls that are under way fail."""
        self.ended = True
        for stream in (*self._streams, self._lease):
            stream.cancel()

    def _hold(self) -> None:
        """Read what comes: nothing but the connection's own questions, whether we are still there."""
        with suppress(CallError):
            for _ in self._lease:
                pass

    def fetched(self, reference: str) -> Any:
        """What a pull tells of itself, to its end or that of the build."""
        stream = self.client.admin.PullImage(admin.PullImageRequest(reference=reference))
        self._streams.append(stream)
        if self.ended:
            stream.cancel()
        return stream

    def find(self, reference: str) -> Found | None:
        """An image, which stays until the end. None if it is not here."""
        try:
            reply = self.client.admin.UseBuildImage(admin.UseBuildImageRequest(build_id=self.id, reference=reference))
        except CallError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return Found(reply.image_id, json.loads(reply.config))

    @contextmanager
    def mounted(self, image_id: str, *, writable: bool = False) -> Iterator[Mounted]:
        """An image's files, or none for no image, for a while."""
        request = admin.MountBuildImageRequest(build_id=self.id, image_id=image_id, writable=writable)
        reply = self.client.admin.MountBuildImage(request)
        try:
            yield Mounted(reply.mount_id, reply.directory)
        finally:
            back = admin.UnmountBuildImageRequest(build_id=self.id, mount_id=reply.mount_id)
            self.client.admin.UnmountBuildImage.behind(back)  # else it goes with the build

    def commit(
        self,
        image_id: str,
        document: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        references: Sequence[str],
        *,
        container: str = "",
        mount: str = "",
    ) -> str:
        """A new image on top of another, or of nothing: with what a container or a mount has written as a layer, or with
        another configuration alone; its id."""
        request = admin.CommitBuildRequest(
            build_id=self.id,
            image_id=image_id,
            config=json.dumps(document).encode(),
            history=[json.dumps(line).encode() for line in history],
            references=references,
        )
        if container:
            request.container_id = container
        elif mount:
            request.mount_id = mount
        if self.epoch is not None:
            request.created = self.epoch
        return str(self.client.admin.CommitBuild(request).image_id)
