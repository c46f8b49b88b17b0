"""hosts.toml and registries.conf, from files to the endpoints that are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagesvc.references import parse_reference
from imagesvc.registry.endpoint import EVERYTHING, Endpoint, EndpointSources, is_loopback
from imagesvc.registry.endpoints import endpoints_for
from proto.errors import Code, CrispError


class Host:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.sources = EndpointSources(
            certs_dirs=(str(base / "a"), str(base / "b")),
            registries_conf=str(base / "registries.conf"),
            registries_conf_dir=str(base / "registries.conf.d"),
            docker_certs_dirs=(str(base / "docker"),),
        )

    def write(self, name: str, text: str = "") -> None:
        (self.base / name).parent.mkdir(parents=True, exist_ok=True)
        (self.base / name).write_text(text)

    def urls(self, reference: str) -> list[str]:
        return [str(endpoint) for endpoint in self.endpoints(reference)]

    def endpoints(self, reference: str) -> list[Endpoint]:
        return list(endpoints_for(parse_reference(reference), self.sources))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_configured(host: Host) -> None:
    assert host.urls("nginx") == ["https://registry-1.docker.io/v2/library/nginx"]
    assert host.urls("quay.io/a") == ["https://quay.io/v2/a"]
    assert host.urls("localhost:5000/a") == ["http://localhost:5000/v2/a"]
    assert host.urls("127.0.0.1:443/a") == ["https://127.0.0.1:443/v2/a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("localhost", True), ("x.localhost:1", True), ("127.9.9.9:5", True), ("[::1]:5", True)),
        *(("10.0.0.1:5", False), ("quay.io", False), ("localhost.example", False)),
    ],
)
def test_loopback(name: str, expected: bool) -> None:
    assert is_loopback(name) is expected


def test_mirrors_come_first_and_the_registry_last(host: Host) -> None:
    host.write(
        "a/docker.io/hosts.toml",
        '[host."http://m1:5000"]\ncapabilities = ["pull"]\n[host."https://m2/base/v2"]\noverride_path = true\n',
    )
    assert host.urls("nginx") == [
        "http://m1:5000/v2/library/nginx",
        "https://m2/base/v2/library/nginx",
        "https://registry-1.docker.io/v2/library/nginx",
    ]
    first, second, last = host.endpoints("nginx")
    assert first.capabilities == {"pull"}
    assert (second.capabilities, second.namespace, last.namespace) == (EVERYTHING, "docker.io", "")
    assert first.url("manifests", "v1") == "http://m1:5000/v2/library/nginx/manifests/v1?ns=docker.io"


def test_server_and_its_options(host: Host) -> None:
    host.write("b/quay.io/hosts.toml", 'server = "https://up.example/api"\nskip_verify = true\nheader = {x = ["1", "2"]}\n')
    (endpoint,) = host.endpoints("quay.io/a")
    assert str(endpoint) == "https://up.example/api/v2/a"
    assert endpoint.tls.skip_verify
    assert endpoint.headers == (("x", "1"), ("x", "2"))


def test_an_empty_server_is_none_named(host: Host) -> None:
    host.write("a/quay.io/hosts.toml", 'server = ""\n[host."http://m"]\n')
    assert host.urls("quay.io/a") == ["http://m/v2/a", "https://quay.io/v2/a"]


def test_a_named_directory_wins_over_the_default(host: Host) -> None:
    host.write("a/_default/hosts.toml", 'server = ""\n[host."http://default"]\n')
    host.write("b/r.example:5000/hosts.toml", 'server = ""\n[host."http://colon"]\n')
    host.write("b/s.example_5000_/hosts.toml", 'server = ""\n[host."http://underline"]\n')
    assert host.urls("r.example:5000/a") == ["http://colon/v2/a", "https://r.example:5000/v2/a"]
    assert host.urls("s.example:5000/a") == ["http://underline/v2/a", "https://s.example:5000/v2/a"]
    assert host.urls("r.example/a") == ["http://default/v2/a", "https://r.example/v2/a"]


def test_certificates(host: Host) -> None:
    for name in ("ca.crt", "c.pem", "k.pem"):
        host.write(f"a/r.example/{name}")
    host.write("a/r.example/hosts.toml", 'ca = ["ca.crt"]\nclient = [["c.pem", "k.pem"]]\ndial_timeout = "1m"\n')
    (endpoint,) = host.endpoints("r.example/a")
    base = host.base / "a/r.example"
    assert endpoint.tls.ca_files == (str(base / "ca.crt"),)
    assert endpoint.tls.client_certificates == ((str(base / "c.pem"), str(base / "k.pem")),)
    assert endpoint.connect_timeout == 60


def test_docker_style_directories(host: Host) -> None:
    for name in ("ca.crt", "client.cert", "client.key"):
        host.write(f"docker/r.example/{name}")
        host.write(f"a/s.example/{name}")
    for reference in ("r.example/a", "s.example/a"):
        (endpoint,) = host.endpoints(reference)
        assert len(endpoint.tls.ca_files) == len(endpoint.tls.client_certificates) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("[host]\na = 1", '[host."http://m"]\ncapabilities = ["fly"]', '[host."http://m"]\nheader = 1'),
        *('server = "gopher://x"', "ca = 1.5", "client = []\n["),
        '[host."http://m"]\ndial_timeout = "soon"',
    ],
)
def test_mistakes_name_the_file(host: Host, text: str) -> None:
    host.write("a/r.example/hosts.toml", text)
    with pytest.raises(CrispError, match=r"hosts\.toml") as caught:
        host.endpoints("r.example/a")
    assert caught.value.code is Code.INVALID_ARGUMENT


CONF = """
unqualified-search-registries = ["nowhere.example"]
[[registry]]
prefix = "r.example"
location = "r.internal:5000"
[[registry]]
prefix = "r.example/team"
insecure = true
location = "internal/mirror"
[[registry.mirror]]
location = "m1/x"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m2/y"
insecure = true
[[registry]]
prefix = "*.wild.example"
location = "one/cache"
[[registry]]
location = "blocked.example"
blocked = true
"""


def test_registries_conf(host: Host) -> None:
    host.write("registries.conf", CONF)
    assert host.urls("r.example/other") == ["https://r.internal:5000/v2/other"]
    assert host.urls("r.example/team/app:v1") == [
        *("https://m2/v2/y/app", "http://m2/v2/y/app"),
        *("https://internal/v2/mirror/app", "http://internal/v2/mirror/app"),
    ]
    assert host.urls("r.example/team/app@sha256:" + "a" * 64)[0] == "https://m1/v2/x/app"
    assert host.urls("r.example/teams/app") == ["https://r.internal:5000/v2/teams/app"]
    assert host.urls("a.b.wild.example/app") == ["https://one/v2/cache/app"]
    assert host.urls("nginx") == ["https://nowhere.example/v2/nginx"]
    with pytest.raises(CrispError) as caught:
        host.endpoints("blocked.example/x")
    assert caught.value.code is Code.PERMISSION_DENIED


def test_drop_ins_replace_and_certs_d_wins(host: Host) -> None:
    host.write("registries.conf", CONF)
    host.write("registries.conf.d/50-x.conf", '[[registry]]\nprefix = "r.example"\nlocation = "new"\n')
    assert host.urls("r.example/a") == ["https://new/v2/a"]
    host.write("a/r.example/hosts.toml", 'server = "https://toml"\n')
    assert host.urls("r.example/a") == ["https://toml/v2/a"]


@pytest.mark.parametrize(
    "text", ["[registries.search]\nregistries = []", "[[registry]]\nblocked = true", "x = [", "registry = 1"]
)
def test_mistakes_in_registries_conf(host: Host, text: str) -> None:
    host.write("registries.conf", text)
    with pytest.raises(CrispError, match=r"registries\.conf"):
        host.endpoints("r.example/a")
