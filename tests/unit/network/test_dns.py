from __future__ import annotations

from pathlib import Path

import pytest

from runtime.network import dns


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dns, "HOST_RESOLV_CONF", str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(dns, "SYSTEMD_RESOLV_CONF", str(tmp_path / "upstream.conf"))
    return tmp_path


def pod(*, servers: tuple[str, ...] = (), searches: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> str:
    return dns.resolv_conf(servers=servers, searches=searches, options=options, own_network=True)


def test_the_requests_values_in_order(host: Path) -> None:
    text = pod(servers=("10.96.0.10", "fd00::a"), searches=("ns.svc", "svc"), options=("ndots:5", "edns0"))
    assert text == "search ns.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n"


def test_a_server_of_the_request_stays_even_on_loopback(host: Path) -> None:
    assert pod(servers=("127.0.0.1",)) == "nameserver 127.0.0.1\n"


def test_the_hosts_file_without_loopback_resolvers(host: Path) -> None:
    (host / "resolv.conf").write_text("# mine\nsearch x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 9.9.9.9\n")
    assert pod() == "# mine\nsearch x\nnameserver 9.9.9.9\n"


def test_the_hosts_network_keeps_all(host: Path) -> None:
    (host / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    assert dns.resolv_conf(servers=(), searches=(), options=(), own_network=False) == "nameserver 127.0.0.53\n"


def test_the_stub_resolvers_upstream_stands_in(host: Path) -> None:
    (host / "resolv.conf").write_text("nameserver 127.0.0.53\noptions edns0\n")
    (host / "upstream.conf").write_text("nameserver 192.0.2.53\nsearch lan\n")
    assert pod() == "nameserver 192.0.2.53\nsearch lan\n"


def test_a_host_without_the_file(host: Path) -> None:
    assert pod() == ""


def test_scoped_and_malformed_servers_stay(host: Path) -> None:
    (host / "resolv.conf").write_text("nameserver fe80::1%eth0\nnameserver\nnameserver what\n")
    assert pod() == "nameserver fe80::1%eth0\nnameserver\nnameserver what\n"
