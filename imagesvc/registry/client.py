"""HTTP to registries: the distribution specification 1.1 over aiohttp, with authentication, redirects and retries.

aiohttp and ssl cost some 15 MiB; they are imported when the first registry is spoken to. One client serves all pulls and
keeps connections open between them for a short while.

Credentials, headers and client certificates of an endpoint go to its own origin and, what is a password, to the token server
that it names: never along a redirect, nor to where a `Location` leads. Once a request has left its origin it is a stranger's
to the end: a 401 from there is not answered.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urljoin

from imagesvc.limits import MAX_ERROR_BODY_BYTES, MAX_MANIFEST_BYTES, MAX_TOKEN_REPLY_BYTES
from imagesvc.media_types import ACCEPT
from imagesvc.references import is_digest
from imagesvc.registry import auth
from imagesvc.registry.access import Access, Budget
from imagesvc.registry.endpoint import Tls
from imagesvc.registry.errors import Kind, RegistryFailure, from_status
from imagesvc.registry.proxies import proxy_for
from proto.errors import CrispError

if TYPE_CHECKING:
    import ssl

    import aiohttp

T = TypeVar("T")
Origin = tuple[str, str, int]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_NO_HEAD = frozenset({400, 403, 404, 405, 501})
"""Answers to HEAD after which GET is asked, as containerd does: some registries and proxies know no other method."""
_NUMBER = re.compile("[0-9]{1,19}")
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

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._contexts: dict[Any, ssl.SSLContext] = {}
        self._authorizations: collections.OrderedDict[Any, auth.Token] = collections.OrderedDict()

    async def close(self) -> None:
        """Closes all connections; the next request opens the client again."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def manifest(self, access: Access, name: str, *, head: bool) -> ManifestReply:
        """Fetches or, with `head`, only asks for a manifest by tag or digest."""
        endpoint = access.endpoint

        async def once() -> ManifestReply:
            method = "HEAD" if head else "GET"
            scope = auth.pull_scope(endpoint.repository)
            url = endpoint.url("manifests", name)
            async with self.request(access, method, url, scope, {"Accept": ACCEPT}) as reply:
                if head and reply.status in _NO_HEAD:
                    return ManifestReply("", "", b"")
                if reply.status != 200:
                    raise await failure_of(reply)
                body = b"" if head else await read_bounded(reply, MAX_MANIFEST_BYTES, "manifest")
                if not body and not head:
                    raise RegistryFailure(Kind.BROKEN, "it sent a manifest without a byte")
                digest = reply.headers.get("Docker-Content-Digest", "")
                return ManifestReply(digest if is_digest(digest) else "", reply.headers.get("Content-Type", ""), body)

        return await with_retries(once, access.budget)

    @asynccontextmanager
    async def blob(
        self, access: Access, digest: str, offset: int, size: int
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Opens a blob at an offset: yields where the reply really starts (0 or the offset), and its chunks.

        A reply that tells another length than the blob's `size` is refused before its first byte: it is something else, such
        as the page by which a network asks for a password.
        """
        endpoint = access.endpoint
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        scope = auth.pull_scope(endpoint.repository)
        url = endpoint.url("blobs", digest)
        async with self.request(access, "GET", url, scope, headers) as reply:
            if reply.status == 200:
                start = 0
            elif reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                start = offset
            else:
                raise await failure_of(reply)
            told = reply.content_length
            total = reply.headers.get("Content-Range", "").rpartition("/")[2] if start else ""
            if (told is not None and start + told != size) or (_NUMBER.fullmatch(total) and int(total) != size):
                told_of = total or told
                raise RegistryFailure(Kind.BROKEN, f"it sends {told_of} bytes for a blob that has {size}")
            yield start, _chunks(reply, access.budget)

    @asynccontextmanager
    async def request(
        self,
        access: Access,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, authenticated if the endpoint asks for it, redirects followed.

        `url` may be elsewhere, as that of an upload is: then nothing secret is sent. `body` makes the body anew for each
        try, since a 401 may come after it was sent.
        """
        endpoint, credentials = access.endpoint, access.credentials
        home = origin_of(f"{endpoint.scheme}://{endpoint.host}")
        if home[0] == "https" and origin_of(url)[0] != "https":
            raise RegistryFailure(Kind.BROKEN, f"it leads from HTTPS to {url[:200]}, which is not HTTPS")
        key = (endpoint.scheme, endpoint.host, scope, credentials)
        common = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
        authorization = self._cached(key)

        def sent() -> _Sent:
            secret = [*endpoint.headers, *([("Authorization", authorization)] if authorization else [])]
            return _Sent(method, url, common, secret, home, body)

        reply, at_home = await self._send(access, sent())
        if reply.status == 401 and at_home and not (authorization and credentials.registry_token):
            challenges = auth.parse_challenges(reply.headers.getall("WWW-Authenticate", []))
            if auth.choose(challenges) is not None:
                reply.release()
                authorization = await self._authorize(access, challenges, scope, key)
                reply, _at_home = await self._send(access, sent())
                if reply.status in (401, 403):
                    self._authorizations.pop(key, None)
        try:
            yield reply
        except _transport_errors() as error:
            raise _unreachable(error, access) from error
        finally:
            reply.close()

    def _cached(self, key: Any) -> str:
        token = self._authorizations.get(key)
        if token is None or token.expires <= time.monotonic():
            return ""
        self._authorizations.move_to_end(key)
        return token.value

    async def _authorize(self, access: Access, challenges: list[auth.Challenge], scope: str, key: Any) -> str:
        """The Authorization value that answers the challenges."""
        credentials = access.credentials
        challenge = auth.choose(challenges)
        assert challenge is not None
        if credentials.registry_token:
            token = auth.Token(f"Bearer {credentials.registry_token}", time.monotonic() + 60)
        elif challenge.scheme == "basic":
            if credentials.anonymous or credentials.identity_token:
                raise RegistryFailure(Kind.UNAUTHENTICATED, "HTTP 401: it asks for a user name and a password")
            token = auth.Token(auth.basic_header(credentials), time.monotonic() + 300)
        else:
            fetched = await self._fetch_token(access, challenge, scope)
            token = auth.Token(f"Bearer {fetched.value}", fetched.expires)
        self._authorizations[key] = token
        while len(self._authorizations) > _CACHED_TOKENS:
            self._authorizations.popitem(last=False)
        return token.value

    async def _fetch_token(self, access: Access, challenge: auth.Challenge, scope: str) -> auth.Token:
        scopes = [scope]
        asked = challenge.parameters.get("scope", "")
        if asked and asked != scope:
            scopes.append(asked)
        try:
            wanted = auth.token_request(challenge, access.credentials, scopes, access.endpoint.scheme == "https")
        except CrispError as error:
            raise RegistryFailure(Kind.UNAUTHENTICATED, error.message) from None
        common = {"User-Agent": _USER_AGENT}
        server = wanted.url.partition("?")[0]
        sent = _Sent(
            wanted.method,
            wanted.url,
            common,
            list(wanted.headers.items()),
            origin_of(wanted.url),
            lambda: wanted.body or None,
        )
        reply, _at_home = await self._send(access, sent)
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
            raise _unreachable(error, access) from error
        finally:
            reply.close()

    async def _send(self, access: Access, sent: _Sent) -> tuple[aiohttp.ClientResponse, bool]:
        """Sends, following redirects; also returns whether the reply is from where secrets may go."""
        from yarl import URL  # noqa: PLC0415  comes with aiohttp, see the module's docstring

        tls = access.endpoint.tls
        url = sent.url
        at_home = True
        for _ in range(_MAX_REDIRECTS):
            origin = origin_of(url)
            at_home = at_home and origin == sent.home
            context = await self._tls_context(tls if at_home or tls.skip_verify else Tls(tls.ca_files))
            headers = _all(sent) if at_home else _harmless(sent.headers, sent.method)
            proxy = _proxy(origin)
            session = await self._open_session(proxy if proxy.startswith("socks") else "")
            try:
                reply = await session.request(
                    sent.method,
                    URL(url, encoded=True).with_user(None),
                    headers=headers,
                    data=sent.body() if sent.body else None,
                    allow_redirects=False,
                    ssl=context,
                    proxy=None if proxy.startswith("socks") else proxy or None,
                    timeout=_timeout(access, sending=sent.body is not None),
                )
            except _transport_errors() as error:
                raise _unreachable(error, access) from error
            except ValueError as error:  # a host that cannot be looked up: IDNA, a header with a line's end
                raise RegistryFailure(Kind.BROKEN, f"it cannot be asked at {url[:200]}: {error}") from None
            location = reply.headers.get("Location", "")
            if reply.status not in _REDIRECTS or not location or sent.method not in ("GET", "HEAD"):
                return reply, at_home
            reply.release()
            target = joined(url, location)
            if origin[0] == "https" and origin_of(target)[0] != "https":
                raise RegistryFailure(Kind.BROKEN, f"it redirects from HTTPS to {target[:200]}, which is not HTTPS")
            url = target
        raise RegistryFailure(Kind.BROKEN, f"more than {_MAX_REDIRECTS} redirects")

    async def _open_session(self, socks: str = "") -> aiohttp.ClientSession:
        """The session of all requests, or of those that go through a SOCKS proxy."""
        session = self._sessions.get(socks)
        if session is None:
            import aiohttp  # noqa: PLC0415

            options: Any = {"limit": 0, "keepalive_timeout": _KEEPALIVE_SECONDS}
            if socks:
                from imagesvc.registry.socks import SocksConnector  # noqa: PLC0415

                connector: aiohttp.TCPConnector = SocksConnector(socks, **options)
            else:
                connector = aiohttp.TCPConnector(**options)
            session = self._sessions[socks] = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # it would also send what root's netrc has
            )
        return session

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


@dataclass(frozen=True)
class _Sent:
    """A request: what everybody may see of it, and what the origin `home` alone may."""

    method: str
    url: str
    headers: Mapping[str, str]
    secret: Sequence[tuple[str, str]] = field(repr=False)
    home: Origin
    body: Callable[[], Any] | None


def _all(sent: _Sent) -> Mapping[str, str]:
    """Both together; what an endpoint's own headers say takes the place of crisp's, and may be said several times."""
    from multidict import CIMultiDict  # noqa: PLC0415  comes with aiohttp

    own = {name.lower() for name, _value in sent.secret}
    return CIMultiDict([*((n, v) for n, v in sent.headers.items() if n.lower() not in own), *sent.secret])


def _harmless(headers: Mapping[str, str], method: str) -> Mapping[str, str]:
    """What a request has anywhere: of a redirected one only what it needs."""
    if method not in ("GET", "HEAD"):
        return headers
    return {name: value for name, value in headers.items() if name in ("User-Agent", "Accept-Encoding", "Accept", "Range")}


def origin_of(url: str) -> Origin:
    """Scheme, host and port; BROKEN for what is no http(s) URL."""
    from yarl import URL  # noqa: PLC0415

    try:
        parsed = URL(url, encoded=True)
        host, port = parsed.host, parsed.port
    except (ValueError, TypeError):
        host, port = None, None
    if not host or not port or parsed.scheme not in ("http", "https"):
        raise RegistryFailure(Kind.BROKEN, f"it names a URL that is none: {url[:200]}")
    return parsed.scheme, host.rstrip(".").lower(), port


def _proxy(origin: Origin) -> str:
    try:
        return proxy_for(*origin, os.environ)
    except ValueError as error:
        raise RegistryFailure(Kind.UNAVAILABLE, str(error)) from None


def joined(url: str, location: str) -> str:
    """Where a Location leads; BROKEN for what is no URL."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise RegistryFailure(Kind.BROKEN, f"it names a URL that is none: {location[:200]}") from None


def _timeout(access: Access, *, sending: bool) -> aiohttp.ClientTimeout:
    import aiohttp  # noqa: PLC0415

    silence = access.silence(sending=sending)
    connect = min(access.endpoint.connect_timeout, silence)
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=silence)


def _make_context(tls: Tls) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415

    context = ssl.create_default_context()
    for path in tls.ca_files:
        context.load_verify_locations(cafile=path)
    for certificate, key in tls.client_certificates:
        context.load_cert_chain(certificate, key)
    # Python 3.13 sets it, Go does not: private authorities without key identifiers go on working.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
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


async def _chunks(reply: aiohttp.ClientResponse, budget: Budget) -> AsyncIterator[bytes]:
    async for chunk in reply.content.iter_any():
        budget.touch()
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


async def with_retries(once: Callable[[], Awaitable[T]], budget: Budget) -> T:
    """Runs a small request up to three times while the failure is one that may pass and the budget lasts."""
    for pause in (*_BACKOFF_SECONDS, None):
        try:
            answer = await once()
        except RegistryFailure as failure:
            if failure.retry_after is None or pause is None or budget.used_up:
                raise
            await budget.pause(backoff(pause, failure.retry_after))
        else:
            budget.touch()
            return answer
    raise AssertionError


def backoff(pause: float, retry_after: float) -> float:
    """Seconds to wait: at least what the server asked for, spread so that a cluster's nodes do not come back at once."""
    return max(retry_after, pause * random.uniform(0.5, 1.5))  # noqa: S311  not a secret


def _transport_errors() -> tuple[type[BaseException], ...]:
    import aiohttp  # noqa: PLC0415

    return (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


def _unreachable(error: BaseException, access: Access) -> RegistryFailure:
    """What a transport's failure means. Silence is not waited for again where another endpoint may answer."""
    import aiohttp  # noqa: PLC0415

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return RegistryFailure(Kind.UNAVAILABLE, f"its certificate is not trusted: {error.certificate_error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return RegistryFailure(Kind.UNAVAILABLE, f"cannot connect: {error.os_error or error}", 0.0)
    if isinstance(error, aiohttp.InvalidURL):
        return RegistryFailure(Kind.BROKEN, f"it names a URL that is none: {str(error)[:200]}")
    if isinstance(error, asyncio.TimeoutError):
        return RegistryFailure(Kind.UNAVAILABLE, "no answer in time", None if access.has_alternative else 0.0)
    return RegistryFailure(Kind.UNAVAILABLE, f"the connection broke: {error}", 0.0)
