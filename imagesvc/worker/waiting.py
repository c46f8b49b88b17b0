"""Layers as files that need those below them: the contents are written while they come, the tree when the others are there.

A layer is unpacked as if it stood on its own. At the first entry that depends on others (unpack.py) a `PatientWriter` gives
up the tree, and goes on with files' contents: inodes and data of an image lie anywhere. The skeleton says for each file
which inode it has. So `complete` can read the archive again without the contents, and makes the tree by the same rules, on
the layers below.
"""

from __future__ import annotations

from imagesvc.erofs import layer_file
from imagesvc.limits import Limits
from imagesvc.tar import skeleton
from imagesvc.tar.header import TarError
from imagesvc.tar.skeleton import SkeletonWriter
from imagesvc.tar.tar_stream import Data, Entry, TarReader
from imagesvc.worker import unpack
from imagesvc.worker.layer_image import LayerImage
from imagesvc.worker.merged_view import MergedView


class PatientWriter:
    """Applies a layer's entries while the layers below are not known. `waits` is the path that needs them, "" if none does:
    then `tree` has made the layer."""

    def __init__(self, image: LayerImage, bones: SkeletonWriter, limits: Limits) -> None:
        self._image = image
        self._skeleton = bones
        self._limits = limits
        self._has_file = False
        self._entries = 0
        self.tree = unpack.LayerWriter(image, None, bones, limits)
        self.waits = ""

    def entry(self, entry: Entry) -> None:
        """Applies a header."""
        if not self.waits:
            try:
                self.tree.entry(entry)
            except unpack.NeedsLower as error:
                self.waits = str(error)
                self._entries = self.tree.entries
                self._content(entry)
            return
        self._entries += 1
        if self._entries > self._limits.layer_entries:
            raise TarError(f"the layer has more than {self._limits.layer_entries} entries")
        self._skeleton.raw(entry.raw)
        self._content(entry)

    def _content(self, entry: Entry) -> None:
        self._has_file = unpack.has_content(entry)
        if self._has_file:
            self._image.file_without_name(entry)

    def data(self, data: Data) -> None:
        """Takes in a piece of the last entry's content."""
        if not self.waits:
            self.tree.data(data)
        elif self._has_file:
            self._image.data(data.view, data.last)
        else:
            self._skeleton.raw(bytes(data.view))

    def finish(self) -> None:
        """Ends the layer, or what there is of it."""
        if self.waits:
            self._image.finish_without_tree()
        else:
            self.tree.finish()


def complete(image: KnownFiles, lower: MergedView, limits: Limits) -> unpack.LayerWriter:
    """Makes the tree of a layer whose file has its contents.

    Raises what unpacking raises, and ValueError where the file is damaged.
    """
    records = image.records
    writer = unpack.LayerWriter(image, lower, skeleton.NoSkeleton(), limits)
    reader = TarReader()
    for kind, payload, _stored, _segments in records:
        if kind != b"R":
            raise ValueError("the skeleton has a file's content where none belongs")
        reader.receive_data(payload)
        while (event := reader.next_event()) is not None:
            if type(event) is Entry:
                image.used = False
                try:
                    writer.entry(event)
                except TarError:
                    raise  # it names it itself
                except Exception as error:
                    error.add_note(f"at the entry {event.name[:200]!r}")
                    raise
                if image.used:
                    reader.skip_data()
            elif type(event) is Data:
                writer.data(event)
    writer.finish()
    return writer


class KnownFiles(LayerImage):
    """An image that has the files' contents already; the skeleton's records say which inode is whose."""

    def __init__(self, path: str, descriptor: int, trailer: layer_file.Trailer, bones: int) -> None:
        """The file at `path`, which is open, and what stands behind its image; `bones` is a copy of the skeleton."""
        super().__init__(path, descriptor, skeleton.NoSkeleton())
        self.resume(trailer.image_bytes, trailer.metadata)
        self.records = skeleton.records_of(bones, 0, trailer.skeleton_bytes)
        self.used = False

    def regular(self, entry: Entry, path: bytes) -> None:
        """Gives a file its name."""
        if not (entry.stored or entry.segments is not None):
            super().regular(entry, path)
            return
        parent, base = self.free(path)
        kind, payload, *_rest = next(self.records, (b"", b""))
        if kind != b"X":
            raise ValueError("the skeleton lacks a file's content")
        parent.children[base] = skeleton.node_of(payload)
        self.used = True
