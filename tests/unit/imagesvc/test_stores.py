"""Inflating, the content store, joined work, image records."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imagesvc.store import content
from imagesvc.store.content import ContentStore, Ingest, digest_of
from imagesvc.store.images import Image, ImageIndex, LayerRef, OciConfig
from imagesvc.store.layers import chain_ids
from imagesvc.tar import inflate
from imagesvc.transfer.joins import Joins
from proto.errors import Code, CrispError
from tests.images.memory_records import MemoryRecords


def inflated(data: bytes, step: int) -> bytes:
    chunks = iter([data[i : i + step] for i in range(0, len(data), step)])
    reader = inflate.open_reader(lambda: next(chunks, b""))
    pieces = []
    while piece := reader.read():
        assert len(piece) <= 1 << 20
        pieces.append(piece)
    return b"".join(pieces)


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=3), st.integers(1, 5000))
def test_inflating(parts: list[bytes], step: int) -> None:
    whole = b"".join(parts)
    assert inflated(b"".join(gzip.compress(part) for part in parts), step) == whole
    assert inflated(b"".join(zstandard.ZstdCompressor().compress(part) for part in parts), step) == whole
    if not inflate.is_compressed(whole[:4]):
        assert inflated(whole, step) == whole


def test_bounded_pieces_of_a_bomb() -> None:
    data = bytes(50 << 20)
    assert inflated(gzip.compress(data), 1 << 20) == data
    assert inflated(zstandard.ZstdCompressor().compress(data), 1 << 20) == data


@pytest.mark.parametrize("change", [lambda d: d[:-10], lambda d: d[:50] + b"\xff\xff" + d[52:], lambda d: d + b"rubbish"])
def test_damaged_gzip(change: object) -> None:
    with pytest.raises(inflate.InflateError):
        inflated(change(gzip.compress(bytes(range(256)) * 40)), 100)  # type: ignore[operator]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    with ThreadPoolExecutor(2) as executor:
        made = ContentStore(str(tmp_path), executor)
        made.prepare(3600)
        yield made


def test_what_a_crash_has_left_half_written_goes_at_the_start(store: ContentStore, tmp_path: Path) -> None:
    for name in (f"{content._PUT}abc", *(f"{prefix}abc" for prefix in content.SCRATCH), "sha256-partial.0123"):
        (tmp_path / "ingest" / name).touch()
    store.prepare(3600)
    assert os.listdir(tmp_path / "ingest") == ["sha256-partial.0123"]
    store.prepare(0)
    assert os.listdir(tmp_path / "ingest") == []


async def test_who_gives_up_while_a_file_is_opened_leaves_none(
    store: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what was there of a download: the next one goes on with it."""
    open_, opened, go = Ingest.open, asyncio.Event(), asyncio.Event()

    async def slow(*words: Any) -> Ingest:
        made = await open_(*words)
        opened.set()
        await go.wait()
        return made

    monkeypatch.setattr(Ingest, "open", slow)
    for kept, begun in ((0, store.put(digest_of(b"x"), b"x")), (1, store.ingest(digest_of(b"x"), 1))):
        opened.clear()
        go.clear()
        work: asyncio.Future[Any] = asyncio.ensure_future(begun)
        await opened.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        go.set()
        while len(os.listdir(tmp_path / "ingest")) != kept:
            await asyncio.sleep(0)


async def test_a_blob_from_ingest_to_removal(store: ContentStore, tmp_path: Path) -> None:
    data = b"x" * 3_000_000
    digest = digest_of(data)
    ingest = await store.ingest(digest, len(data))
    told: list[int] = []
    ingest.on_available = told.append
    await ingest.write(data[:2_000_000])
    await ingest.write(data[2_000_000:])
    await ingest.verify()
    ingest.close()
    assert told[-1] == len(data)
    assert not store.has(digest)
    store.publish({digest: ingest.path})
    assert store.has(digest)
    assert (store.read(digest), store.total_bytes) == (data, len(data))
    with store.keeping([digest]):
        store.remove([digest])
        assert store.has(digest)
    store.remove([digest])
    assert not Path(store.path(digest)).exists()
    with pytest.raises(CrispError) as caught:
        store.read(digest)
    assert caught.value.code is Code.NOT_FOUND


async def test_a_partial_download_is_resumed(store: ContentStore) -> None:
    data = bytes(range(256)) * 10
    first = await store.ingest(digest_of(data), len(data))
    await first.write(data[:1000])
    await first.flush()
    first.close()
    second = await store.ingest(digest_of(data), len(data))
    assert second.received == 1000
    await second.write(data[1000:])
    await second.verify()
    second.close()
    third = await store.ingest(digest_of(data), 10)
    assert third.received == 0
    third.close()


async def test_wrong_content_is_forgotten(store: ContentStore) -> None:
    ingest = await store.ingest("sha256:" + "0" * 64, 3)
    for data, text in ((b"abc", "is corrupt"), (b"ab", "2 bytes where its descriptor says 3")):
        await ingest.write(data)
        with pytest.raises(CrispError, match=text):
            await ingest.verify()
        assert ingest.received == 0
    ingest.discard()
    ingest.close()


async def test_file_is_not_closed_under_a_write(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of its descriptor would be another file's, which would get the bytes."""
    begun, go_on, written = threading.Event(), threading.Event(), []

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        begun.set()
        assert go_on.wait(30)
        written.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", slow)
    data = b"x" * 2_000_000
    ingest = await store.ingest(digest_of(data), len(data))
    await ingest.write(data)
    await asyncio.get_running_loop().run_in_executor(None, begun.wait)
    ingest.discard()
    ending = asyncio.ensure_future(ingest.end())
    await asyncio.sleep(0)
    go_on.set()
    await ending
    assert written == [f"{ingest.path} (deleted)"]


async def test_download_that_nobody_wants_any_more_while_it_is_opened(store: ContentStore) -> None:
    gate = threading.Event()
    blocked = [store._executor.submit(gate.wait) for _ in range(2)]
    before = len(os.listdir("/proc/self/fd"))
    opening = asyncio.ensure_future(store.ingest(digest_of(b"x"), 1))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    for each in blocked:
        each.result()
    await asyncio.get_running_loop().run_in_executor(store._executor, int)
    while len(os.listdir("/proc/self/fd")) != before:
        await asyncio.sleep(0.001)


async def test_stale_partials_go(store: ContentStore, tmp_path: Path) -> None:
    await store.put(digest_of(b"a"), b"a")
    store.drop_stale(3600)
    assert len(list((tmp_path / "ingest").iterdir())) == 1
    store.drop_stale(-10)
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_joined_work_runs_once_and_shares_its_end() -> None:
    joins = Joins()
    release = asyncio.Event()
    runs = 0

    async def work() -> str:
        nonlocal runs
        runs += 1
        await release.wait()
        return "done"

    callers = [asyncio.create_task(joins.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.wait([callers[0]])
    release.set()
    assert await asyncio.gather(*callers[1:]) == ["done", "done"]
    assert (runs, joins.keys()) == (1, [])

    async def fail() -> None:
        raise CrispError(Code.NOT_FOUND, "x")

    results = await asyncio.gather(*(joins.run("k", fail) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(result, CrispError) for result in results)


async def test_the_last_caller_waits_for_the_clean_up() -> None:
    joins = Joins()
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    caller = asyncio.create_task(joins.run("k", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()
    assert cleaned.is_set()


def image(number: int, *tags: str) -> Image:
    digest = f"sha256:{number:064x}"
    return Image(
        id=digest,
        kind="image",
        repo_tags=tags,
        repo_digests=(),
        size=1,
        config=OciConfig(user="bob:staff"),
        pinned=False,
        layers=(LayerRef("key", digest),),
    )


async def test_records_come_back_as_they_were() -> None:
    records = MemoryRecords()
    index = ImageIndex(records, ())
    stored = await index.add(image(1, "docker.io/library/a:latest"))
    again = ImageIndex(records, ())
    again.load()
    assert again.all() == [stored]
    assert (stored.uid, stored.username) == (None, "bob")


async def test_a_tag_moves(tmp_path: Path) -> None:
    records = MemoryRecords()
    index = ImageIndex(records, ())
    await index.add(image(1, "docker.io/library/a:latest"))
    await index.add(image(2, "docker.io/library/a:latest"))
    for view in (index, ImageIndex(records, ())):
        view.load()
        assert view.resolve("a").id == image(2).id
        assert view.get(image(1).id).repo_tags == ()


async def test_a_crash_while_a_tag_moves_leaves_the_younger_image_with_it() -> None:
    records = MemoryRecords()
    for number in (2, 1):
        document = image(number, "docker.io/library/a:latest").to_record()
        records.documents[str(number)] = {**document, "created_at": float(number)}
    index = ImageIndex(records, ())
    index.load()
    assert index.resolve("a").id == image(2).id
    assert index.get(image(1).id).repo_tags == ()


async def test_prefixes_have_to_be_unique() -> None:
    index = ImageIndex(MemoryRecords(), ())
    await index.add(image(0x1))
    await index.add(image(0x2))
    assert index.resolve("0" * 63) is None
    assert index.resolve("0" * 63 + "1").id == image(1).id


def test_chain_ids() -> None:
    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert chain_ids([]) == []
    assert chain_ids([a, b])[0] == a
    assert chain_ids([a, b])[1] == digest_of(f"{a} {b}".encode())


async def test_anothers_manifest_leaves_the_image_as_it_is() -> None:
    index = ImageIndex(MemoryRecords(), ())
    mark = {"io.kubernetes.cri-o.annotations.checkpoint.name": "x"}
    digests = [f"sha256:{n:064x}" for n in range(9)]
    victim = replace(image(1, "r.example/victim:v1"), repo_digests=(f"r.example/victim@{digests[2]}",), manifest=digests[2])
    evil = replace(
        image(1, "evil.example/x:v1"),
        repo_digests=(f"evil.example/x@{digests[3]}",),
        annotations=mark,
        manifest=digests[3],
        size=1 << 40,
    )
    for order in ((victim, evil), (evil, victim)):
        index = ImageIndex(MemoryRecords(), ())
        for each in order:
            stored = await index.add(each)
        assert stored.annotations_of("r.example/victim:v1") == {}
        assert stored.annotations_of(stored.id) == {}
        assert stored.annotations_of(stored.id, "evil.example/x:v1") == mark
        assert (stored.manifest, stored.size) == (order[0].manifest, order[0].size)
        assert Image.from_record(stored.to_record()).other_annotations == stored.other_annotations
        await index.untag(stored, order[1].repo_tags[0])
        await index.untag(index.get(stored.id), order[1].repo_digests[0])
        assert index.get(stored.id).other_annotations == {}
    # The owner's own new manifest counts.
    index = ImageIndex(MemoryRecords(), ())
    await index.add(victim)
    newer = replace(victim, annotations={"a": "b"}, manifest=digests[5], repo_digests=(f"r.example/victim@{digests[5]}",))
    assert (await index.add(newer)).annotations_of(newer.id) == {"a": "b"}
