"""ADD of a URL: HTTP and HTTPS, into a file of the build's scratch directory, checked by --checksum."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import os
import posixpath
import re
import ssl
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from imagesvc.containerfile.instructions import Add
from runtime.build.copying import Fetched
from runtime.build.selection import URLS

if TYPE_CHECKING:
    import aiohttp

_CHECKSUM: Final = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")
_DIGITS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_GIT: Final = re.compile(r"(?:git|ssh|git\+\w+)://|git@|https?://[^#?]*\.git(?:[#?]|\Z)")
_PIECE: Final = 1 << 18
_LOOK_SECONDS: Final = 0.1
_CONNECT_SECONDS: Final = 30.0
_SILENCE_SECONDS: Final = 60.0
"""After which a server that sends nothing is given up."""


def fetch_urls(step: Add, scratch: str, stopped: Callable[[], bool] = lambda: False) -> list[Fetched]:
    """Downloads what an expanded ADD names by URL, into new files of `scratch`. Blocks, until `stopped` says so.

    Raises:
        ContainerfileError: it cannot be had, it is not what --checksum says, it is a git repository, or it was stopped.
        OSError: it cannot be written.
    """
    for source in step.sources:
        if _GIT.match(source):
            raise step.error(f"{source} is a git repository: clone it before the build, and COPY what it has")
    urls = [source for source in step.sources if source.startswith(URLS)]
    checksum = _CHECKSUM.fullmatch(step.checksum)
    if step.checksum:
        if checksum is None or len(checksum[2]) != _DIGITS[checksum[1]]:
            raise step.error(f"--checksum={step.checksum}: it is to be sha256: and 64 digits 0-9a-f, or sha384, sha512")
        if len(urls) != 1 or len(step.sources) != 1 or step.heredocs:
            raise step.error("--checksum is for one URL, as the only source")
    if not urls:
        return []
    return asyncio.run(_unless_stopped(step, urls, scratch, stopped))


async def _unless_stopped(step: Add, urls: list[str], scratch: str, stopped: Callable[[], bool]) -> list[Fetched]:
    fetching = asyncio.ensure_future(_fetch(step, urls, scratch))
    try:
        while not fetching.done():
            if stopped():
                raise step.error("the build has ended")
            await asyncio.wait([fetching], timeout=_LOOK_SECONDS)
        return fetching.result()
    finally:
        fetching.cancel()
        await asyncio.wait([fetching])


async def _fetch(step: Add, urls: list[str], scratch: str) -> list[Fetched]:
    import aiohttp  # noqa: PLC0415  most builds do without

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
    headers = {"User-Agent": "crisp", "Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, trust_env=True, auto_decompress=False) as session:
        found = []
        for url in urls:
            try:
                found.append(await _one(session, step, url, scratch))
            except (aiohttp.ClientError, TimeoutError, ssl.SSLError, ValueError) as error:
                raise step.error(f"{url}: {error or 'it does not answer'}") from None
        return found


async def _one(session: aiohttp.ClientSession, step: Add, url: str, scratch: str) -> Fetched:
    async with session.get(url) as reply:
        if reply.status != 200:
            raise step.error(f"{url}: the server says {reply.status} {reply.reason}")
        algorithm = step.checksum.partition(":")[0] or "sha256"
        digest = hashlib.new(algorithm)
        descriptor, path = tempfile.mkstemp(dir=scratch, prefix="url-")
        with os.fdopen(descriptor, "wb") as file:
            async for piece in reply.content.iter_chunked(_PIECE):
                digest.update(piece)
                file.write(piece)
        if step.checksum and digest.hexdigest() != step.checksum.partition(":")[2]:
            raise step.error(f"{url} has the checksum {algorithm}:{digest.hexdigest()}, and not {step.checksum}")
        return Fetched(url, path, _name(url), _time(reply.headers.get("Last-Modified", "")))


def _name(url: str) -> str:
    name = posixpath.basename(unquote(urlsplit(url).path))
    return "" if name in (".", "..") or "\0" in name else name


def _time(header: str) -> int:
    """Nanoseconds since the epoch; the epoch where the server does not say, so that the layer is the same each time."""
    try:
        return int(email.utils.parsedate_to_datetime(header).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0
