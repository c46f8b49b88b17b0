"""HTTP to registries: the distribution specification 1.1 over aiohttp, with authentication, redirects and retries.

aiohttp and ssl cost some 15 MiB; they are imported when the first registry is spoken to. One client serves all pulls and
keeps connections open between them for a short while.

Credentials go to the endpoint that they are for and to the token server that it names, never along a redirect.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

from imagesvc.limits import MAX_ERROR_BODY_BYTES, MAX_MANIFEST_BYTES, MAX_TOKEN_REPLY_BYTES
from imagesvc.media_types import ACCEPT
from imagesvc.references import is_digest
from imagesvc.registry import auth
from imagesvc.registry.credentials import Credentials
from imagesvc.registry.endpoint import Endpoint, Tls
from imagesvc.registry.errors import Kind, RegistryFailure, from_status
from proto.errors import CrispError

if TYPE_CHECKING:
    import ssl

    import aiohttp

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_READ_BUFFER = 1 << 20
_CACHED_TOKENS = 256
_KEEPALIVE_SECONDS = 15.0
_USER_AGENT: Final = "crisp"
_BACKOFF_SECONDS = (0.2, 0.8)
"""Pauses before the second and the third try of a request."""


@dataclass(frozen=True)
class ManifestReply:
    """A manifest as a registry answered. `body` is empty after HEAD; `digest` where the registry told none that is one."""

    digest: str
    media_type: str
    body: bytes


class RegistryClient:
    """Requests to endpoints. Every method raises RegistryFailure, and nothing else, for what registries do wrong."""

    def __init__(self, progress_timeout: float) -> None:
        """`progress_timeout`: seconds without a single byte after which a transfer is given up."""
        self._progress_timeout = progress_timeout
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[Any, ssl.SSLContext] = {}
        self._authorizations: collections.OrderedDict[Any, auth.Token] = collections.OrderedDict()

    async def close(self) -> None:
        """Closes all connections; the next request opens the client again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def manifest(self, endpoint: Endpoint, credentials: Credentials, name: str, *, head: bool) -> ManifestReply:
        """Fetches or, with `head`, only asks for a manifest by tag or digest."""

        async def once() -> ManifestReply:
            method = "HEAD" if head else "GET"
            scope = auth.pull_scope(endpoint.repository)
            url = endpoint.url("manifests", name)
            async with self.request(endpoint, credentials, method, url, scope, {"Accept": ACCEPT}) as reply:
                if reply.status != 200:
                    raise await failure_of(reply)
                body = b"" if head else await read_bounded(reply, MAX_MANIFEST_BYTES, "manifest")
                if not body and not head:
                    raise RegistryFailure(Kind.BROKEN, "it sent a manifest without a byte")
                digest = reply.headers.get("Docker-Content-Digest", "")
                return ManifestReply(digest if is_digest(digest) else "", reply.headers.get("Content-Type", ""), body)

        return await with_retries(once)

    @asynccontextmanager
    async def blob(
        self, endpoint: Endpoint, credentials: Credentials, digest: str, offset: int
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Opens a blob at an offset: yields where the reply really starts (0 or the offset), and its chunks."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        scope = auth.pull_scope(endpoint.repository)
        url = endpoint.url("blobs", digest)
        async with self.request(endpoint, credentials, "GET", url, scope, headers) as reply:
            if reply.status == 200:
                start = 0
            elif reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                start = offset
            else:
                raise await failure_of(reply)
            yield start, _chunks(reply)

    @asynccontextmanager
    async def request(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, authenticated if the endpoint asks for it, redirects followed.

        `body` makes the body anew for each try, since a 401 may come after it was sent.
        """
        credentials = credentials.for_host(endpoint.host)
        key = (endpoint.scheme, endpoint.host, scope, credentials)
        own = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **dict(endpoint.headers), **(headers or {})}
        authorization = self._cached(key)
        reply = await self._send(endpoint, method, url, own, authorization, body)
        if reply.status == 401 and not (authorization and credentials.registry_token):
            challenges = auth.parse_challenges(reply.headers.getall("WWW-Authenticate", []))
            if auth.choose(challenges) is not None:
                reply.release()
                authorization = await self._authorize(endpoint, credentials, challenges, scope, key)
                reply = await self._send(endpoint, method, url, own, authorization, body)
                if reply.status in (401, 403):
                    self._authorizations.pop(key, None)
        try:
            yield reply
        except _transport_errors() as error:
            raise _unreachable(error) from error
        finally:
            reply.close()

    def _cached(self, key: Any) -> str:
        token = self._authorizations.get(key)
        if token is None or token.expires <= time.monotonic():
            return ""
        self._authorizations.move_to_end(key)
        return token.value

    async def _authorize(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        challenges: list[auth.Challenge],
        scope: str,
        key: Any,
    ) -> str:
        """The Authorization value that answers the challenges."""
        challenge = auth.choose(challenges)
        assert challenge is not None
        if credentials.registry_token:
            token = auth.Token(f"Bearer {credentials.registry_token}", time.monotonic() + 60)
        elif challenge.scheme == "basic":
            if credentials.anonymous or credentials.identity_token:
                raise RegistryFailure(Kind.UNAUTHENTICATED, "HTTP 401: it asks for a user name and a password")
            token = auth.Token(auth.basic_header(credentials), time.monotonic() + 300)
        else:
            fetched = await self._fetch_token(endpoint, challenge, credentials, scope)
            token = auth.Token(f"Bearer {fetched.value}", fetched.expires)
        self._authorizations[key] = token
        while len(self._authorizations) > _CACHED_TOKENS:
            self._authorizations.popitem(last=False)
        return token.value

    async def _fetch_token(
        self, endpoint: Endpoint, challenge: auth.Challenge, credentials: Credentials, scope: str
    ) -> auth.Token:
        scopes = [scope]
        asked = challenge.parameters.get("scope", "")
        if asked and asked != scope:
            scopes.append(asked)
        try:
            wanted = auth.token_request(challenge, credentials, scopes, endpoint.scheme == "https")
        except CrispError as error:
            raise RegistryFailure(Kind.UNAUTHENTICATED, error.message) from None
        own = {"User-Agent": _USER_AGENT, **wanted.headers}
        server = urlsplit(wanted.url)._replace(query="").geturl()
        reply = await self._send(endpoint, wanted.method, wanted.url, own, "", lambda: wanted.body or None)
        try:
            if reply.status != 200:
                failure = await failure_of(reply)
                kind = Kind.UNAUTHENTICATED if reply.status in (400, 401, 403, 404) else failure.kind
                raise RegistryFailure(kind, f"token server {server}: {failure.message}", failure.retry_after)
            body = await read_bounded(reply, MAX_TOKEN_REPLY_BYTES, "token")
            return auth.parse_token(body, time.monotonic())
        except CrispError as error:
            raise RegistryFailure(Kind.UNAUTHENTICATED, f"token server {server}: {error.message}") from None
        except _transport_errors() as error:
            raise _unreachable(error) from error
        finally:
            reply.close()

    async def _send(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str,
        body: Callable[[], Any] | None,
    ) -> aiohttp.ClientResponse:
        """Sends, following redirects. What is secret stays behind when one leads to another host."""
        from yarl import URL  # noqa: PLC0415  comes with aiohttp, see the module's docstring

        session = await self._open_session()
        context = await self._tls_context(endpoint.tls)
        sent = dict(headers)
        if authorization:
            sent["Authorization"] = authorization
        timeout = self._timeout(endpoint)
        for _ in range(_MAX_REDIRECTS):
            try:
                reply = await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=sent,
                    data=body() if body else None,
                    allow_redirects=False,
                    ssl=context,
                    timeout=timeout,
                )
            except _transport_errors() as error:
                raise _unreachable(error) from error
            location = reply.headers.get("Location", "")
            if reply.status not in _REDIRECTS or not location or method not in ("GET", "HEAD"):
                return reply
            reply.release()
            target = urljoin(url, location)
            if url.startswith("https:") and not target.startswith("https:"):
                raise RegistryFailure(Kind.BROKEN, f"it redirects from HTTPS to {target[:200]}, which is not HTTPS")
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                kept = ("User-Agent", "Accept-Encoding", "Accept", "Range")
                sent = {name: value for name, value in sent.items() if name in kept}
                context = await self._tls_context(endpoint.tls if endpoint.tls.skip_verify else Tls(endpoint.tls.ca_files))
            url = target
        raise RegistryFailure(Kind.BROKEN, f"more than {_MAX_REDIRECTS} redirects")

    def _timeout(self, endpoint: Endpoint) -> aiohttp.ClientTimeout:
        import aiohttp  # noqa: PLC0415

        return aiohttp.ClientTimeout(total=None, sock_connect=endpoint.connect_timeout, sock_read=self._progress_timeout)

    async def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp  # noqa: PLC0415

            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
        return self._session

    async def _tls_context(self, tls: Tls) -> ssl.SSLContext:
        """A context for these files as they are now: certificates may be renewed while the daemon runs."""
        key = (tls, _stamps(tls))
        context = self._contexts.get(key)
        if context is None:
            try:
                context = await asyncio.to_thread(_make_context, tls)
            except OSError as error:
                raise RegistryFailure(Kind.UNAVAILABLE, f"its certificates cannot be loaded: {error}") from None
            self._contexts = {k: v for k, v in self._contexts.items() if k[0] != tls}
            self._contexts[key] = context
        return context


def _make_context(tls: Tls) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context()
    for path in tls.ca_files:
        context.load_verify_locations(cafile=path)
    for certificate, key in tls.client_certificates:
        context.load_cert_chain(certificate, key)
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _stamps(tls: Tls) -> tuple[int, ...]:
    stamps = []
    for path in (*tls.ca_files, *(f for pair in tls.client_certificates for f in pair)):
        try:
            stamps.append(os.stat(path).st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)


async def _chunks(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for chunk in reply.content.iter_any():
        yield chunk


async def read_bounded(reply: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The whole body; RegistryFailure where it is longer than `limit` bytes."""
    parts = bytearray()
    async for chunk in reply.content.iter_any():
        parts += chunk
        if len(parts) > limit:
            raise RegistryFailure(Kind.BROKEN, f"its {what} is longer than {limit} bytes")
    return bytes(parts)


async def failure_of(reply: aiohttp.ClientResponse) -> RegistryFailure:
    """The failure that an unexpected status means, with what the registry says about it."""
    body = await reply.content.read(MAX_ERROR_BODY_BYTES)
    return from_status(reply.status, body, reply.headers.get("Retry-After"))


async def with_retries(once: Callable[[], Awaitable[T]]) -> T:
    """Runs a small request up to three times while the failure is one that may pass."""
    for pause in (*_BACKOFF_SECONDS, None):
        try:
            return await once()
        except RegistryFailure as failure:
            if failure.retry_after is None or pause is None:
                raise
            await asyncio.sleep(backoff(pause, failure.retry_after))
    raise AssertionError


def backoff(pause: float, retry_after: float) -> float:
    """Seconds to wait: at least what the server asked for, spread so that a cluster's nodes do not come back at once."""
    return max(retry_after, pause * random.uniform(0.5, 1.5))  # noqa: S311  not a secret


def _transport_errors() -> tuple[type[BaseException], ...]:
    import aiohttp  # noqa: PLC0415

    return (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


def _unreachable(error: BaseException) -> RegistryFailure:
    import aiohttp  # noqa: PLC0415

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return RegistryFailure(Kind.UNAVAILABLE, f"its certificate is not trusted: {error.certificate_error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return RegistryFailure(Kind.UNAVAILABLE, f"cannot connect: {error.os_error or error}", 0.0)
    if isinstance(error, aiohttp.InvalidURL):
        return RegistryFailure(Kind.BROKEN, f"it names a URL that is none: {str(error)[:200]}")
    if isinstance(error, asyncio.TimeoutError):
        return RegistryFailure(Kind.UNAVAILABLE, "no answer in time", 0.0)
    return RegistryFailure(Kind.UNAVAILABLE, f"the connection broke: {error}", 0.0)
