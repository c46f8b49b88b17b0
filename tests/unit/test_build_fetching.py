"""ADD of a URL."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.instructions import Add
from imagesvc.containerfile.parser import parse
from runtime.build.fetching import fetch_urls

CONTENT = b"\x1f\x8bcontent" * 1000


class Files(BaseHTTPRequestHandler):
    """/file, /short, /moved/… and nothing else."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/moved"))
            self.end_headers()
        elif path in ("/", "/file", "/a%20b", "/short"):
            self.send_response(200)
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: 100 if path == "/short" else None])
        else:
            self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def add(text: str) -> Add:
    found = parse(f"FROM a\nADD {text}".encode(), "F").stages[0].instructions[0]
    assert isinstance(found, Add)
    return found


@pytest.mark.parametrize(
    ("path", "name"), [("/file", "file"), ("/moved/file", "file"), ("/a%20b?x=/y#z", "a b"), ("/", ""), ("/file?a", "file")]
)
def test_a_file(url: str, tmp_path: Path, path: str, name: str) -> None:
    (found,) = fetch_urls(add(f"{url}{path} /x"), str(tmp_path))
    assert Path(found.path).read_bytes() == CONTENT, "as it was sent: what is compressed stays so"
    assert (found.url, found.name, found.mtime) == (url + path, name, 1445412480 * 10**9)
    assert os.path.dirname(found.path) == str(tmp_path)


def test_a_build_that_ends_meanwhile(tmp_path: Path) -> None:
    """The server has accepted, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = iter((False, False, True))
        with pytest.raises(ContainerfileError, match="F:2: ADD: the build has ended"):
            fetch_urls(add(f"http://127.0.0.1:{silent.getsockname()[1]}/x /x"), str(tmp_path), lambda: next(asked))


def test_several_and_none(url: str, tmp_path: Path) -> None:
    assert [one.name for one in fetch_urls(add(f"{url}/file b {url}/ /x/"), str(tmp_path))] == ["file", ""]
    assert fetch_urls(add("a b /x/"), str(tmp_path)) == []


def test_checksums(url: str, tmp_path: Path) -> None:
    for algorithm in ("sha256", "sha384", "sha512"):
        digest = hashlib.new(algorithm, CONTENT).hexdigest()
        assert len(fetch_urls(add(f"--checksum={algorithm}:{digest} {url}/file /x"), str(tmp_path))) == 1
    with pytest.raises(ContainerfileError) as caught:
        fetch_urls(add(f"--checksum=sha256:{'0' * 64} {url}/file /x"), str(tmp_path))
    assert (
        f"F:2: ADD: {url}/file has the checksum sha256:{hashlib.sha256(CONTENT).hexdigest()}, and not"
        in caught.value.message
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{url}/nothing /x", "/nothing: the server says 404 Not Found"),
        ("{url}/short /x", "/short: "),
        ("http://127.0.0.1:1/x /x", "http://127.0.0.1:1/x: "),
        ("http://[::1/x /x", "http://[::1/x: "),
        ("https://github.com/a/b.git /x", "https://github.com/a/b.git is a git repository: clone it before the build"),
        ("https://github.com/a/b.git#main:docs /x", "is a git repository"),
        ("git@github.com:a/b.git /x", "is a git repository"),
        ("--checksum=md5:00 {url}/file /x", "--checksum=md5:00: it is to be sha256: and 64 digits"),
        ("--checksum=sha256:00 {url}/file /x", "it is to be sha256: and 64 digits"),
        ("--checksum=sha256:{zeros} a /x", "--checksum is for one URL, as the only source"),
        ("--checksum=sha256:{zeros} {url}/file {url}/ /x/", "--checksum is for one URL, as the only source"),
    ],
)
def test_what_is_wrong_is_said(url: str, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ContainerfileError) as caught:
        fetch_urls(add(text.format(url=url, zeros="0" * 64)), str(tmp_path))
    assert caught.value.message.startswith("F:2: ADD: ")
    assert said in caught.value.message
