"""Options of `crisp run`: what comes of them, and what is refused before any daemon is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from proto import api_pb2 as cri
from runtime.cli import run_options, run_ports
from runtime.cli.main import load
from runtime.cli.run_options import Options

REFUSED = [
    ["run", "--tmpfs", "run", "x"],
    ["run", "--add-host", "x", "x"],
    ["run", "--add-host", "x:", "x"],
    ["run", "--mount", "type=volume,target=/x", "x"],
    ["run", "--mount", "type=tmpfs", "x"],
    ["run", "--mount", "type=bind,target=/x", "x"],
    ["run", "--shm-size", "x", "x"],
    ["run", "--restart", "always", "x"],
    ["run", "--gpus", "2", "x"],
    ["run", "--gpus", "device=", "x"],
    ["run", "--rm", "--keep", "x"],
    ["run", "--userns", "keep-id", "x"],
    ["run", "--init", "--pid", "host", "x"],
    ["run", "--pod", "x", "--publish", "1:1", "x"],
    ["run", "--pod", "x", "--network", "host", "x"],
    ["run", "--pod", "x", "--shm-size", "1M", "x"],
    ["run", "--pod", "x", "--sysctl", "a=b", "x"],
    ["run", "--mount", "type=bind,src=/x,dst=/x,readnoly", "x"],
    ["run", "--mount", "type=bind,src=/x,dst=/x,ro=yes", "x"],
    ["run", "--mount", "type=bind,src=/x,dst=/x,bind-propagation=all", "x"],
    ["run", "--mount", "type=tmpfs,dst=/x:y", "x"],
    ["run", "--mount", "type=bind,src=/no/such,dst=/x", "x"],
    ["run", "--dns", "name", "x"],
    ["run", "--workdir", "relative", "x"],
    ["run", "--security-opt", "seccomp=/no/such", "x"],
    ["run", "--env-file", "/no/such", "x"],
    ["run", "--rootfs", "/no/such", "x"],
    ["run", "--device", "/proc/self/net", "x"],
    ["run", "--no-such", "x"],
    ["exec", "--no-such", "x", "true"],
    ["run", "--platform", "linux/vax", "x"],
    ["run", "--publish-all", "--network", "none", "x"],
    ["run", "--publish", "9" * 5000 + ":80", "x"],
    ["run", "--publish", "1-99999999999999999999:1-99999999999999999999", "x"],
    ["run", "--name", "a b", "x"],
    ["run", "--name", "a\nb", "x"],
    ["run", "--name", "a/b", "x"],
    ["run", "--name", "..", "x"],
    ["run", "--name", "n" * 300, "x"],
    ["run", "--entrypoint", "", "x"],
    ["stats", "--filter", "x=y"],
    ["events", "--filter", "x=y"],
    ["events", "--format", "{{x}}"],
]


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: ascii(" ".join(words))[:60])
def test_what_is_refused(words: list[str]) -> None:
    done = CliRunner().invoke(load(words[0]), words[1:], obj="/no/such/socket")
    option = next(word for word in words if word.startswith("--") and word != "--pod")
    assert (done.exit_code, option in done.output) == (125 if words[0] in ("run", "exec") else 2, True), done.output


def container(options: Options) -> cri.ContainerConfig:
    return run_options.container(options, "c", ())


def test_gpus_are_cdi_s() -> None:
    def names(text: str) -> list[str]:
        return [device.name for device in container(Options(gpus=text)).CDI_devices]

    assert names("all") == ["nvidia.com/gpu=all"]
    assert names('"device=0,1"') == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert names("") == []


def test_an_empty_entrypoint_takes_the_image_s_away() -> None:
    own = run_options.container(Options(entrypoint=""), "c", ("/bin/echo", "x"))
    assert (own.command, own.args) == (["/bin/echo", "x"], [])
    own = run_options.container(Options(entrypoint="/e"), "c", ("x",))
    assert (own.command, own.args) == (["/e"], ["x"])


def test_signals_by_name_and_number() -> None:
    for text, meant in (("15", cri.SIGNAL_SIGTERM), ("quit", cri.SIGNAL_SIGQUIT), ("RTMIN+3", cri.SIGNAL_SIGRTMINPLUS3)):
        assert container(Options(stop_signal=text)).stop_signal == meant
    for text in ("999", "9" * 5000, "-1", "NONE"):
        assert CliRunner().invoke(load("run"), ["--stop-signal", text, "x"], obj="/no/such").exit_code == 125


def test_files_of_variables_are_docker_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("F", "ours")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbfA=1\r\n  B=2 \n\tC='3'\n # comment\n\nF\nABSENT\n")
    found = {pair.key: pair.value for pair in container(Options(env_files=(str(file),))).envs}
    assert found == {"A": b"1", "B": b"2 ", "C": b"'3'", "F": b"ours"}
    file.write_bytes(b"D E=5\n")
    refused = CliRunner().invoke(load("run"), ["--env-file", str(file), "x"], obj="/no/such/socket")
    assert (refused.exit_code, "no spaces" in refused.output) == (125, True), refused.output


def test_read_only_mounts() -> None:
    for words, readonly in (("ro", True), ("readonly=TRUE", True), ("ro=false", False), ("readonly=0", False)):
        [mount] = container(Options(mounts=(f"type=bind,src=/,dst=/y,{words}",))).mounts
        assert mount.readonly is readonly


def test_input_ends_with_who_gives_it_but_for_terminals() -> None:
    assert container(Options(interactive=True)).stdin_once
    assert not container(Options(interactive=True, tty=True)).stdin_once


def test_what_the_cri_has_no_field_for() -> None:
    own = container(
        Options(tmpfs=("/run:size=1m",), mounts=("type=tmpfs,dst=/x,tmpfs-mode=700",), ulimits=("core=0", "cpu=1"))
    )
    assert own.annotations == {"io.crisp.tmpfs": "/run:size=1m\n/x:mode=700", "io.crisp.ulimits": "core=0,cpu=1"}
    assert not own.mounts
    pod = run_options.pod(Options(add_host=("db:1.2.3.4", "six=[::1]"), shm_size="2k"), "n", "u", "/logs")
    assert pod.annotations == {"io.crisp.hosts": "1.2.3.4 db\n::1 six", "io.crisp.shm-size": "2048"}
    assert container(Options(init=True)).linux.security_context.namespace_options.pid == cri.POD
    none = run_options.pod(Options(network="none"), "n", "u", "/logs")
    assert none.linux.security_context.namespace_options.network == cri.CONTAINER


def test_users_are_others_than_those_of_other_pods() -> None:
    every = range(1 << 29, 1 << 30, run_options.USERS)
    pod = run_options.pod(Options(), "n", "u", "/logs")
    assert not pod.linux.security_context.namespace_options.HasField("userns_options")
    run_options.give_users(pod, set(every) - {every[77]})
    [line] = pod.linux.security_context.namespace_options.userns_options.uids
    assert (line.host_id, line.container_id, line.length) == (every[77], 0, 65536)


def published(text: str) -> list[tuple[str, int, int, str]]:
    return [
        (mapping.host_ip, mapping.host_port, mapping.container_port, cri.Protocol.Name(mapping.protocol))
        for mapping in run_ports.published(text)
    ]


def test_ports_that_are_named() -> None:
    assert published("8080:80") == [("", 8080, 80, "TCP")]
    assert published("127.0.0.1:53:53/udp") == [("127.0.0.1", 53, 53, "UDP")]
    assert published("[::1]:80:80/SCTP") == [("::1", 80, 80, "SCTP")]
    assert published("8000-8001:80-81") == [("", 8000, 80, "TCP"), ("", 8001, 81, "TCP")]
    for text in ("x:80", "80:", "1.2.3.4:80", "-1:80", "1-2:80", "0:80", "80:0", "2-1:2-1", "a::80", "80/x"):
        with pytest.raises(SystemExit):
            published(text)


def test_free_ports_are_all_different() -> None:
    """Of the 28 000 that the kernel chooses from, 2000 would nearly always have one twice."""
    assert len({port for _, port, _, _ in published("8000-9999")}) == 2000


def test_ports_that_are_free() -> None:
    for text, address, inner in (("80", "", 80), ("127.0.0.1::80/udp", "127.0.0.1", 80), ("::80", "", 80)):
        [(where, port, there, _)] = published(text)
        assert (where, there, port > 0) == (address, inner, True)
    assert [inner for _, _, inner, _ in published("80-82")] == [80, 81, 82]
    document = {"config": {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "443": {}, "x": {}}}}
    found = [(one.container_port, one.protocol) for one in run_ports.exposed(document, run_ports.published("80"))]
    assert found == [(53, cri.UDP), (443, cri.TCP)]
    assert list(run_ports.exposed({}, ())) == []
    assert [one.container_port for one in run_ports.exposed(document, (), ("443", "8080/tcp"))] == [80, 53, 443, 8080]
