"""CNI with a plugin that fails, hangs, talks nonsense or is not ready."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proto.errors import Code, CrispError
from runtime.network.cni import readiness
from runtime.network.cni.network import CniNetwork
from runtime.network.cni.stragglers import Stragglers
from runtime.network.config import CniConfig, HandlerNetworks
from runtime.network.seam import NetworkRequest, PortMapping
from tests.harness.waiting import until
from tests.kernel.fake_plugin import RESULT, FakePlugin
from tests.kernel.netlab import Netns
from tests.kernel.network_lab import MemoryLeases, request

pytestmark = pytest.mark.root


class Setup:
    """A configuration directory, a fake plugin, a lease table and a pod."""

    def __init__(self, tmp: Path, pod: Netns) -> None:
        self.tmp = tmp
        self.pod = pod
        self.plugin = FakePlugin(tmp)
        self.conf_dir = tmp / "net.d"
        self.conf_dir.mkdir()
        self.leases = MemoryLeases()
        self.write()

    def config(self, **options: Any) -> CniConfig:
        given = {"conf_dir": self.conf_dir, "bin_dirs": (self.plugin.bin_dir,), "plugin_seconds": 10, **options}
        return CniConfig(**given)

    def write(self, file: str = "10-net.conflist", plugins: list[dict[str, Any]] | None = None, **more: Any) -> None:
        document = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins or [{"type": "fake"}], **more}
        draft = self.tmp / "draft"
        draft.write_text(json.dumps(document))
        draft.rename(self.conf_dir / file)

    @asynccontextmanager
    async def network(self, pod_cidrs: tuple[str, ...] = (), **options: Any) -> AsyncIterator[CniNetwork]:
        handlers = options.pop("handlers", {})
        network = CniNetwork(self.config(**options), self.leases, self.tmp / "locks", pod_cidrs, handlers)
        try:
            await network.start()
            yield network
        finally:
            await network.close()

    def request(self, *ports: PortMapping, **options: Any) -> NetworkRequest:
        return request(self.pod, *ports, **options)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    with Netns() as pod:
        yield Setup(tmp_path, pod)


@pytest.mark.parametrize(
    ("script", "message", "code"),
    [
        (
            """echo '{"code": 7, "msg": "no bridge", "details": "it is gone"}'; exit 1""",
            "network net: plugin fake failed at ADD: no bridge: it is gone (code 7)",
            Code.INTERNAL,
        ),
        ("""echo '{"code": 11, "msg": "not now"}'; exit 1""", "not now (code 11)", Code.UNAVAILABLE),
        ("echo 'panic: oh' >&2; exit 2", "on standard error: panic: oh", Code.INTERNAL),
        ("echo plain words; exit 1", "failed at ADD: plain words", Code.INTERNAL),
        ("exit 3", "exit status 3 without a message", Code.INTERNAL),
        ("kill -9 $$", "ended with signal 9", Code.INTERNAL),
        ("echo garbage", "its result is no JSON: garbage", Code.INTERNAL),
        ("true", "its result is no JSON: nothing", Code.INTERNAL),
        ("echo '[]'", "its result is not a JSON object", Code.INTERNAL),
        ("""echo '{"ips": [{"address": "ten"}]}'""", "bad addresses in its result", Code.INTERNAL),
        ("""echo '{"ips": [{"address": "10.0.0.1/8", "interface": 4}]}'""", "bad addresses in its result", Code.INTERNAL),
        ("echo '{}'", "gave eth0 no address", Code.INTERNAL),
        ("head -c 3000000 /dev/zero", "its result is no JSON", Code.INTERNAL),
    ],
)
async def test_a_failed_add_is_told_in_full_and_undone(setup: Setup, script: str, message: str, code: Code) -> None:
    setup.plugin.behave(ADD=script)
    async with setup.network() as network:
        asked = setup.request()
        with pytest.raises(CrispError) as caught:
            await network.attach(asked)
        assert message in caught.value.message
        assert caught.value.code is code
        assert setup.plugin.calls() == ["ADD", "DEL"]
        added, deleted = setup.plugin.environment("ADD"), setup.plugin.environment("DEL")
        assert {**added, "CNI_COMMAND": ""} == {**deleted, "CNI_COMMAND": ""}
        assert setup.leases.documents == {}
        await network.detach(asked)
        assert setup.plugin.calls() == ["ADD", "DEL"]


async def test_a_plugin_that_cannot_be_run(setup: Setup) -> None:
    async with setup.network() as network:
        (setup.plugin.bin_dir / setup.plugin.name).write_text("#!/nowhere/at/all\n")
        with pytest.raises(CrispError, match="cannot run plugin") as caught:
            await network.attach(setup.request())
        assert caught.value.code is Code.FAILED_PRECONDITION


async def test_a_plugin_that_hangs_is_killed_with_what_it_started(setup: Setup) -> None:
    pids = setup.tmp / "pids"
    setup.plugin.behave(ADD=f"sleep 1000 & echo $! $$ > {pids}; wait")
    async with setup.network(plugin_seconds=1) as network:
        with pytest.raises(CrispError, match="did not finish ADD within 1 s and was killed") as caught:
            await network.attach(setup.request())
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        await until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
        assert setup.plugin.calls() == ["ADD", "DEL"]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_something_left_behind_does_not_hold_up_the_result(setup: Setup) -> None:
    setup.plugin.behave(ADD=f"setsid sleep 30 & echo $! > {setup.tmp}/pid; echo '{RESULT}'")
    async with setup.network() as network:
        try:
            assert (await network.attach(setup.request())).ips == ("10.9.0.2",)
        finally:
            os.kill(int((setup.tmp / "pid").read_text()), 9)


async def test_cancelling_kills_the_plugin_and_undoes(setup: Setup) -> None:
    setup.plugin.behave(ADD="sleep 1000")
    async with setup.network() as network:
        task = asyncio.create_task(network.attach(setup.request()))
        await until(lambda: setup.plugin.calls() == ["ADD"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert setup.plugin.calls() == ["ADD", "DEL"]
        assert setup.leases.documents == {}


async def test_what_cannot_be_undone_is_tried_again_after_a_restart(setup: Setup) -> None:
    setup.plugin.behave(ADD="exit 1", DEL="echo still not; exit 1")
    asked = setup.request()
    async with setup.network() as network:
        with pytest.raises(CrispError, match="failed at ADD"):
            await network.attach(asked)
        await network.detach(asked)  # nobody waits for it
        assert setup.leases.items()[0][1]["condemned"]
    setup.write(file="10-net.conflist", name="another", plugins=[{"type": "missing"}])
    setup.plugin.behave()
    async with setup.network() as network:
        await network.sweep(set())
        await until(lambda: not setup.leases.documents)
        assert setup.plugin.told("DEL")["name"] == "net"


async def test_a_failed_del_is_told_and_repeated(setup: Setup) -> None:
    async with setup.network() as network:
        asked = setup.request()
        await network.attach(asked)
        setup.plugin.behave(DEL="echo busy; exit 1")
        with pytest.raises(CrispError, match="failed at DEL: busy"):
            await network.detach(asked)
        setup.plugin.behave()
        await network.detach(asked)
        assert setup.leases.documents == {}


async def test_chains_pass_results_on_and_del_goes_backwards(setup: Setup) -> None:
    second = FakePlugin(setup.tmp, "second")
    second.behave(ADD="""echo "${input#*\\"prevResult\\": }" | sed 's/}$//'""")
    setup.write(plugins=[{"type": "fake", "first": True}, {"type": "second", "capabilities": {"portMappings": True}}])
    async with setup.network(bin_dirs=(setup.plugin.bin_dir, second.bin_dir)) as network:
        asked = setup.request(PortMapping("tcp", 80, 8080), pod_name="web", pod_namespace="shop", pod_uid="u1")
        await network.attach(asked)
        assert "prevResult" not in setup.plugin.told("ADD")
        assert setup.plugin.told("ADD")["first"] is True
        assert second.told("ADD")["prevResult"] == json.loads(RESULT)
        mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
        assert second.told("ADD")["runtimeConfig"] == {"portMappings": mappings}
        assert "runtimeConfig" not in setup.plugin.told("ADD")
        environment = second.environment("ADD")
        assert environment["CNI_ARGS"] == (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={asked.sandbox_id};"
            "K8S_POD_UID=u1"
        )
        assert environment["CNI_IFNAME"] == "eth0"
        assert environment["CNI_NETNS"] == asked.netns_path
        second.behave(DEL="exit 1")
        with pytest.raises(CrispError):
            await network.detach(asked)
        assert setup.plugin.calls() == ["ADD"]  # the list stops at an error
        second.behave()
        await network.detach(asked)
        assert setup.plugin.told("DEL")["prevResult"] == second.told("DEL")["prevResult"] == json.loads(RESULT)


async def test_del_without_a_namespace_after_a_reboot(setup: Setup) -> None:
    with Netns() as gone:
        asked = request(gone)
        async with setup.network() as network:
            await network.attach(asked)
    setup.plugin.behave(DEL="exit 1")
    async with setup.network() as network:
        await network.detach(asked)  # does not hold up the daemon's start
        await network.sweep(set())
        await until((setup.tmp / "fake" / "env.DEL").exists)
        await until(lambda: "CNI_NETNS" in setup.plugin.environment("DEL"))
        assert setup.plugin.environment("DEL")["CNI_NETNS"] == ""
        assert setup.leases.documents
    setup.plugin.behave()
    async with setup.network() as network:
        await network.sweep(set())
        await until(lambda: not setup.leases.documents)


async def test_check_of_what_survived_a_restart(setup: Setup) -> None:
    async with setup.network() as network:
        asked = setup.request()
        await network.attach(asked)
    async with setup.network() as network:
        await network.sweep({asked.sandbox_id})
        await until(lambda: "CHECK" in setup.plugin.calls())
        assert setup.plugin.told("CHECK")["prevResult"] == json.loads(RESULT)
        await network.detach(asked)
    assert setup.plugin.calls() == ["ADD", "CHECK", "DEL"]


async def test_garbage_collection_names_what_is_in_use(setup: Setup) -> None:
    setup.write(cniVersion="1.1.0")
    async with setup.network() as network:
        asked = setup.request()
        await network.attach(asked)
        await network.sweep({asked.sandbox_id})
        await until(lambda: "GC" in setup.plugin.calls())
        await until((setup.tmp / "fake" / "env.GC").exists)
        valid = setup.plugin.told("GC")["cni.dev/valid-attachments"]
        assert valid == [{"containerID": asked.sandbox_id, "ifname": "eth0"}]
        assert "CNI_CONTAINERID" not in setup.plugin.environment("GC")


async def test_no_garbage_collection_where_nothing_was_attached(setup: Setup) -> None:
    """Another runtime's pods are in the same network."""
    setup.write(cniVersion="1.1.0")
    other = FakePlugin(setup.tmp, "other")
    config = {"bin_dirs": (setup.plugin.bin_dir, other.bin_dir), "max_conf_num": 0, "gc_seconds": 1.0}
    asked = setup.request()
    async with setup.network(**config) as network:
        await network.sweep(set())
        await network.attach(asked)
        # Of a network that this state never used, named last: by the time this one is collected, the other was passed over.
        setup.write("00-other.conflist", [{"type": "other"}], name="other", cniVersion="1.1.0")
        await until(lambda: len(network._default.networks) == 2)
        before = setup.plugin.calls().count("GC")
        await until(lambda: setup.plugin.calls().count("GC") >= before + 2)
        assert other.calls() == []
    async with setup.network(**config) as network:  # what it has used is its own to clean
        before = setup.plugin.calls().count("GC")
        await network.sweep(set())
        await until(lambda: not setup.leases.documents and setup.plugin.calls().count("GC") > before)
        assert other.calls() == []


async def test_a_new_state_collects_no_garbage(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.write(cniVersion="1.1.0")
    collected = asyncio.Event()
    collect = CniNetwork._collect_garbage

    async def witnessed(network: CniNetwork) -> None:
        await collect(network)
        collected.set()

    monkeypatch.setattr(CniNetwork, "_collect_garbage", witnessed)
    async with setup.network() as network:
        await network.sweep(set())
        async with asyncio.timeout(10):
            await collected.wait()
        assert setup.plugin.calls() == []


async def test_disabled_check_and_gc(setup: Setup) -> None:
    setup.write(cniVersion="1.1.0", disableCheck=True, disableGC=True)
    async with setup.network() as network:
        asked = setup.request()
        await network.attach(asked)
        await network.sweep({asked.sandbox_id})
        await network.destroy()
    assert setup.plugin.calls() == ["ADD", "DEL"]


async def test_status_decides_readiness_and_is_asked_seldom(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SICK_SECONDS", 0.0)
    setup.write(cniVersion="1.1.0")
    setup.plugin.behave(STATUS="""echo '{"code": 50, "msg": "no uplink"}'; exit 1""")
    async with setup.network() as network:
        first = await network.check()
        assert (first.ready, first.reason) == (False, "NetworkPluginNotReady")
        assert "plugin fake failed at STATUS: no uplink (code 50)" in first.message
        setup.plugin.behave()
        while not (await network.check()).ready:
            await asyncio.sleep(0.01)
        asked = len(setup.plugin.calls())
        for _ in range(20):
            assert (await network.check()).ready
        assert len(setup.plugin.calls()) == asked


async def test_status_is_not_asked_in_old_versions(setup: Setup) -> None:
    setup.plugin.behave(STATUS="exit 1")
    async with setup.network() as network:
        assert (await network.check()).ready
    assert setup.plugin.calls() == []


async def test_a_bad_file_is_reported_and_unloads_nothing(setup: Setup) -> None:
    async with setup.network() as network:
        assert (await network.check()).message == ""
        (setup.conf_dir / "05-bad.conflist").write_text('{"cniVersion": "1.0.0",')
        (setup.conf_dir / "10-net.conflist").write_text("{}")
        (setup.conf_dir / "README").write_text("not a configuration")
        await until(lambda: len(network.problems().split(";")) == 2)
        told = await network.check()
        assert told.ready
        assert "05-bad.conflist: not JSON: " in told.message
        assert "10-net.conflist: cniVersion: missing" in told.message
        assert (await network.attach(setup.request())).ips == ("10.9.0.2",)
        setup.write()
        (setup.conf_dir / "05-bad.conflist").unlink()
        await until(lambda: not network.problems())
        (setup.conf_dir / "10-net.conflist").unlink()
        while (await network.check()).ready:
            await asyncio.sleep(0.01)
        assert f"no usable CNI network configuration in {setup.conf_dir}" in (await network.check()).message
        with pytest.raises(CrispError, match="the pod has no network"):
            await network.attach(setup.request())


@pytest.mark.timeout(60)
async def test_what_is_no_plain_file_is_a_problem_and_holds_up_nothing(setup: Setup) -> None:
    """A named pipe to which nobody writes, a directory."""
    os.mkfifo(setup.conf_dir / "05-pipe.conf")
    (setup.conf_dir / "06-folder.conf").mkdir()
    async with setup.network() as network:
        told = await network.check()
        assert told.ready
        assert "05-pipe.conf: is no plain file" in told.message
        assert "06-folder.conf: cannot be read: Is a directory" in told.message
        assert (await network.attach(setup.request())).ips == ("10.9.0.2",)


async def test_a_directory_that_comes_later_is_followed(setup: Setup) -> None:
    later = setup.tmp / "etc" / "cni" / "net.d"
    async with setup.network(conf_dir=later) as network:
        assert not (await network.check()).ready
        (setup.tmp / "etc").mkdir()
        await asyncio.sleep(0)
        later.mkdir(parents=True)
        (setup.conf_dir / "10-net.conflist").rename(later / "10-net.conflist")
        await until(lambda: network.seen)
        assert (await network.check()).ready


async def test_a_missing_plugin_is_a_reason_and_its_arrival_mends_it(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.network.cni.network.RETRY_SECONDS", 0.0)
    program = setup.plugin.bin_dir / "fake"
    program.rename(setup.tmp / "away")
    async with setup.network() as network:
        told = await network.check()
        assert not told.ready
        assert f"plugin fake is in none of {setup.plugin.bin_dir}" in told.message
        (setup.tmp / "away").rename(program)
        assert (await network.check()).ready


async def test_versions_are_negotiated(setup: Setup) -> None:
    setup.write(cniVersion="0.4.0", cniVersions=["0.4.0", "1.1.0", "2.0.0"])
    async with setup.network() as network:
        await network.attach(setup.request())
        assert setup.plugin.told("ADD")["cniVersion"] == "1.1.0"
    setup.write(cniVersion="0.3.0")
    async with setup.network() as network:
        told = await network.check()
        assert "plugin fake supports protocol versions up to 1.1.0, the configuration asks for 0.3.0" in told.message


async def test_several_networks_and_a_directory_per_handler(setup: Setup) -> None:
    other = setup.tmp / "handler.d"
    other.mkdir()
    setup.write(file="20-more.conflist", name="more")
    setup.write(file="30-third.conflist", name="third")
    (setup.conf_dir / "30-third.conflist").rename(other / "10-third.conflist")
    async with setup.network(max_conf_num=0, handlers={"kata": HandlerNetworks(other, 1)}) as network:
        both = await network.attach(setup.request())
        assert [(n["name"], n["interface"]) for n in both.detail["networks"]] == [("net", "eth0"), ("more", "eth1")]
        one = await network.attach(setup.request(runtime_handler="kata"))
        assert [n["name"] for n in one.detail["networks"]] == ["third"]


async def test_a_template_is_filled_in_with_the_pod_cidr(setup: Setup) -> None:
    (setup.conf_dir / "10-net.conflist").unlink()
    template = setup.tmp / "template"
    template.write_text(
        '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "fake", "capabilities": {"ipRanges": true}, '
        '"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]}]}'
    )
    async with setup.network(conf_template=str(template)) as network:
        assert "the kubelet has not told the node's pod CIDR yet" in (await network.check()).message
        await network.set_pod_cidrs(("10.7.0.0/24", "fd07::/64"))
        assert (await network.check()).ready
        await network.attach(setup.request())
        ranges = [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]]
        assert setup.plugin.told("ADD")["ranges"] == ranges
        assert setup.plugin.told("ADD")["runtimeConfig"] == {"ipRanges": ranges}
        await network.set_pod_cidrs(("10.8.0.0/24",))
        await network.attach(setup.request())
        assert setup.plugin.told("ADD")["ranges"] == [[{"subnet": "10.8.0.0/24"}]]
        template.write_text("{{template}}")
        await network.set_pod_cidrs(("10.9.0.0/24",))
        assert "{{template}} is not understood" in (await network.check()).message
        template.write_bytes(b"\xff")
        await network.set_pod_cidrs(("10.10.0.0/24",))
        assert "cannot be read: 'utf-8' codec" in (await network.check()).message


async def test_records_that_cannot_be_read_are_set_aside(setup: Setup) -> None:
    setup.leases.documents["x"] = '{"kind": "cni"}'
    async with setup.network() as network:
        await network.attach(setup.request())


def straggler(setup: Setup, script: str, sandbox_id: str = "sandbox") -> tuple[Stragglers, subprocess.Popen[bytes]]:
    """A plugin whose daemon was killed while it ran: the daemon's descriptor is closed, and the lock's file still there."""
    stragglers = Stragglers(setup.tmp / "locks")
    with stragglers.guard(sandbox_id) as fd:
        process = subprocess.Popen(["sh", "-c", script], pass_fds=(fd,))
        os.link(setup.tmp / "locks" / sandbox_id, setup.tmp / "kept")
    os.rename(setup.tmp / "kept", setup.tmp / "locks" / sandbox_id)
    return stragglers, process


async def test_a_pod_is_not_disconnected_while_a_plugin_of_an_earlier_daemon_is_at_it(setup: Setup) -> None:
    asked = setup.request()
    async with setup.network() as network:
        await network.attach(asked)
    _, process = straggler(setup, f"sleep 0.5; touch {setup.tmp}/ended", asked.sandbox_id)
    setup.plugin.behave(DEL=f"test -e {setup.tmp}/ended || touch {setup.tmp}/early")
    async with setup.network() as network:
        await network.detach(asked)
    process.wait()
    assert setup.plugin.calls() == ["ADD", "DEL"]
    assert not (setup.tmp / "early").exists()


async def test_plugins_that_outlive_their_daemon_are_waited_for(setup: Setup) -> None:
    stragglers, process = straggler(setup, f"sleep 0.3; touch {setup.tmp}/done")
    await stragglers.gone("sandbox")
    assert (setup.tmp / "done").exists()
    assert list((setup.tmp / "locks").iterdir()) == []
    process.wait()
    await stragglers.gone("sandbox")


async def test_plugins_that_outlive_their_daemon_for_long_are_killed(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.network.cni.stragglers.PATIENCE_SECONDS", 0.1)
    stragglers, process = straggler(setup, "sleep 1000 & wait")
    await stragglers.gone("sandbox")
    assert process.wait() == -9


async def test_a_list_whose_plugins_are_in_its_folder(setup: Setup) -> None:
    """Specification 1.1, "loadOnlyInlinedPlugins"; the folder comes after the file, and changes later."""
    (setup.conf_dir / "10-net.conflist").write_text('{"cniVersion": "1.0.0", "name": "net"}')
    async with setup.network() as network:
        told = await network.check()
        assert "plugins: missing" in told.message
        assert str(setup.conf_dir / "net") in told.message
        folder = setup.conf_dir / "net"
        folder.mkdir()
        await asyncio.sleep(0)
        (setup.tmp / "draft").write_text('{"type": "fake", "mtu": 1}')
        (setup.tmp / "draft").rename(folder / "10-fake.conf")
        async with asyncio.timeout(10):
            while not network._default.networks:
                await asyncio.sleep(0.01)
        await network.attach(setup.request())
        assert setup.plugin.told("ADD")["mtu"] == 1
        (setup.tmp / "draft").write_text('{"type": "fake", "mtu": 2}')
        (setup.tmp / "draft").rename(folder / "10-fake.conf")
        async with asyncio.timeout(10):
            while network._default.networks[0].plugins[0]["mtu"] != 2:
                await asyncio.sleep(0.01)
        (setup.conf_dir / "10-net.conflist").write_text(
            '{"cniVersion": "1.0.0", "name": "net", "loadOnlyInlinedPlugins": true}'
        )
        async with asyncio.timeout(10):
            while "plugins: missing" not in (await network.check()).message:
                await asyncio.sleep(0.01)
