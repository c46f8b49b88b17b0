"""NRI plugins come and go, misbehave, and find again what there is; pods go on whatever they do."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from runtime import uninstall
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet, some_limit, wait_until
from tests.harness.nri_plugin import NriPlugin, Refuse, event_mask

pytestmark = pytest.mark.root


def plugins(kubelet: Kubelet) -> list[dict[str, Any]]:
    """As `crictl info` shows them."""
    reply = kubelet.runtime.Status(cri.StatusRequest(verbose=True))
    found: list[dict[str, Any]] = json.loads(reply.info["config"])["nri"]["plugins"]
    return found


def logged(daemon: Daemon, event: str, **fields: str) -> list[dict[str, Any]]:
    """Lines of the daemon's log with this event and these fields."""
    lines = [json.loads(line) for line in daemon.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == event and fields.items() <= line.items()]


def made(daemon: Daemon, rootfs: Path) -> Kubelet:
    assert daemon.client is not None
    request = admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs))
    return Kubelet(daemon, daemon.client.admin.AddRootfs(request).image_id)


@pytest.fixture
def own(rootfs: Path) -> Iterator[Callable[..., Kubelet]]:
    """Daemons with settings of their own."""
    started: list[Daemon] = []

    def start(nri: str = "", prepare: Callable[[Daemon], None] = lambda _: None, extra: str = "") -> Kubelet:
        daemon = Daemon(extra, nri=nri)
        started.append(daemon)
        prepare(daemon)
        return made(daemon.start(), rootfs)

    yield start
    for daemon in started:
        if daemon.process is not None and daemon.client is not None:
            daemon.remove_all()
            assert daemon.leftovers() == []
        daemon.destroy()


# ---- coming ----


def test_it_is_configured_and_shown(kubelet: Kubelet) -> None:
    with NriPlugin(kubelet.daemon.nri_socket, "shown.x", "42", events=event_mask("RunPodSandbox")) as plugin:
        assert plugin.configuration is not None
        assert plugin.configuration.runtime_name == "crisp"
        assert plugin.configuration.request_timeout == 2000
        assert plugin.configuration.registration_timeout == 5000
        wait_until(lambda: [one["state"] for one in plugins(kubelet)] == ["ready"])
        [shown] = plugins(kubelet)
        assert (shown["index"], shown["name"], shown["kind"], shown["pid"]) == ("42", "shown.x", "external", os.getpid())
        assert shown["events"] == ["RunPodSandbox"]
        kubelet.pod()
        assert plugin.asked[0].timeout_nano < 2_000_000_000, "what it answers at its own deadline still arrives"
    wait_until(lambda: plugins(kubelet) == [])


def test_the_socket_is_roots(kubelet: Kubelet) -> None:
    status = os.stat(kubelet.daemon.nri_socket)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
    directory = os.stat(os.path.dirname(kubelet.daemon.nri_socket))
    assert (stat.S_IMODE(directory.st_mode), directory.st_uid) == (0o700, 0)


@pytest.mark.parametrize(
    ("name", "index"), [("", "10"), ("a/b", "10"), ("é", "10"), ("x", "1"), ("x", "100"), ("x", "1a"), ("x", "¹²")]
)
def test_names_that_are_none_are_refused(kubelet: Kubelet, name: str, index: str) -> None:
    plugin = NriPlugin(kubelet.daemon.nri_socket, name, index).connect()
    with pytest.raises(Refuse, match=r"plugin (name|index)"):
        plugin.register()
    plugin.wait(lambda: plugin.closed)
    plugin.close()


def test_it_registers_once(kubelet: Kubelet) -> None:
    with NriPlugin(kubelet.daemon.nri_socket) as plugin, pytest.raises(Refuse, match="registered already"):
        plugin.register()


def test_events_that_there_are_not(kubelet: Kubelet) -> None:
    plugin = NriPlugin(kubelet.daemon.nri_socket, "greedy", events=1 << 20).connect()
    plugin.register()
    plugin.wait(lambda: plugin.closed)
    assert logged(kubelet.daemon, "nri plugin closed", plugin="10-greedy", reason="registration")
    plugin.close()


def test_what_is_not_served(kubelet: Kubelet) -> None:
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        with pytest.raises(Refuse) as caught:
            plugin.call("Sing", nri.Empty())
        assert caught.value.code == 12


def test_nri_can_be_off(own: Callable[..., Kubelet]) -> None:
    kubelet = own("enabled = false")
    kubelet.pod().run("/bin/true")
    assert not os.path.exists(kubelet.daemon.nri_socket)


# ---- misbehaving ----


def test_it_does_not_register(own: Callable[..., Kubelet]) -> None:
    kubelet = own("plugin_registration_timeout = 0.3")
    plugin = NriPlugin(kubelet.daemon.nri_socket).connect()
    plugin.wait(lambda: plugin.closed)
    assert logged(kubelet.daemon, "nri plugin closed", reason="registration")
    plugin.close()


def hang(_: object) -> None:
    time.sleep(3600)


@pytest.mark.parametrize("method", ["Configure", "Synchronize", "RunPodSandbox", "CreateContainer", "StopPodSandbox"])
def test_it_hangs(own: Callable[..., Kubelet], method: str) -> None:
    """Pods go on without it, after its time-out."""
    kubelet = own("plugin_request_timeout = 0.5")
    plugin = NriPlugin(kubelet.daemon.nri_socket, on={method: hang}).connect()
    plugin.register()
    with NriPlugin(kubelet.daemon.nri_socket, "good", "20") as good:
        if method == "Configure":
            plugin.wait(lambda: plugin.closed)
        pod = kubelet.pod()
        container = pod.run("/bin/sleep", "1000")
        pod.remove()
        assert good.methods(container.id)[0] == "CreateContainer"
        assert good.methods(pod.id)[-1] == "RemovePodSandbox"
    plugin.wait(lambda: plugin.closed)
    [line] = logged(kubelet.daemon, "nri plugin closed", plugin="10-tester")
    assert line["reason"] == "timeout"
    assert method in line["why"]
    plugin.close()


def test_what_it_answers_at_its_own_deadline_arrives(own: Callable[..., Kubelet]) -> None:
    kubelet = own("plugin_request_timeout = 1.0")

    def wait(request: object) -> None:
        time.sleep(plugin.asked[-1].timeout_nano / 1e9)

    with NriPlugin(kubelet.daemon.nri_socket, on={"RunPodSandbox": wait}) as plugin:
        kubelet.pod()
        assert len(plugins(kubelet)) == 1


def test_it_says_that_its_deadline_has_passed(kubelet: Kubelet) -> None:
    """As Go's stub does for a handler that looks at its context."""

    def late(_: object) -> None:
        raise Refuse("context deadline exceeded", code=4)

    with NriPlugin(kubelet.daemon.nri_socket, on={"RunPodSandbox": late}) as plugin:
        kubelet.pod()
        plugin.wait(lambda: plugin.closed)


def test_it_dies_while_it_is_asked(kubelet: Kubelet) -> None:
    plugin = NriPlugin(kubelet.daemon.nri_socket, on={"CreateContainer": lambda _: plugin.close()}).start()
    kubelet.pod().run("/bin/true")
    plugin.wait(lambda: plugin.closed)


RUBBISH = {
    "no multiplexer": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no ttrpc": struct.pack(">II", 2, 20) + b"\xff" * 20,
    "an answer to nothing": struct.pack(">II", 1, 10) + struct.pack(">IIBB", 0, 999, 2, 0),
    "a call on the wrong connection": struct.pack(">II", 1, 10) + struct.pack(">IIBB", 0, 1, 1, 0),
    "an answer that is no Response": struct.pack(">II", 1, 12) + struct.pack(">IIBB", 2, 1, 2, 0) + b"\xff\xff",
}


@pytest.mark.parametrize("data", RUBBISH.values(), ids=RUBBISH)
def test_it_sends_rubbish(kubelet: Kubelet, data: bytes) -> None:
    plugin = NriPlugin(kubelet.daemon.nri_socket, "rubbish").start()
    plugin.send_raw(data)
    plugin.wait(lambda: plugin.closed)
    wait_until(lambda: bool(logged(kubelet.daemon, "nri plugin closed", plugin="10-rubbish", reason="protocol")))
    kubelet.pod().run("/bin/true")
    plugin.close()


def test_its_answer_cannot_be_read(kubelet: Kubelet) -> None:
    class Broken:
        def SerializeToString(self) -> bytes:
            return b"\xff\xff\xff"

    with NriPlugin(kubelet.daemon.nri_socket, on={"CreateContainer": lambda _: Broken()}) as plugin:
        kubelet.pod().run("/bin/true")
        plugin.wait(lambda: plugin.closed)


def test_it_floods(kubelet: Kubelet) -> None:
    """More calls at once than anybody needs."""
    plugin = NriPlugin(kubelet.daemon.nri_socket, "flood").start()
    request = (
        b"\x0a"
        + bytes([len(b"nri.pkg.api.v1alpha1.Runtime")])
        + b"nri.pkg.api.v1alpha1.Runtime"
        + b"\x12\x10UpdateContainers"
    )
    frames = b""
    for stream in range(101, 401, 2):
        frame = struct.pack(">IIBB", len(request), stream, 1, 0) + request
        frames += struct.pack(">II", 2, len(frame)) + frame
    try:
        while not plugin.closed:
            plugin.send_raw(frames)
    except OSError:
        pass
    plugin.wait(lambda: plugin.closed)
    wait_until(lambda: bool(logged(kubelet.daemon, "nri plugin closed", plugin="10-flood", reason="protocol")))
    kubelet.pod().run("/bin/true")
    plugin.close()


def test_too_many_plugins(kubelet: Kubelet) -> None:
    many = [NriPlugin(kubelet.daemon.nri_socket).connect() for _ in range(70)]
    wait_until(lambda: sum(plugin.closed for plugin in many) >= 6)
    assert sum(plugin.closed for plugin in many) == 6
    for plugin in many:
        plugin.close()
    wait_until(lambda: plugins(kubelet) == [])
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        kubelet.pod()
        assert plugin.methods() == ["RunPodSandbox"]


def test_a_slow_plugin_is_asked_one_thing_at_a_time(kubelet: Kubelet) -> None:
    """As by every runtime: plugins have no locks for more."""
    running: list[int] = []

    def slowly(_: object) -> None:
        running.append(1)
        assert len(running) == 1
        time.sleep(0.05)
        running.pop()

    with NriPlugin(kubelet.daemon.nri_socket, on={"RunPodSandbox": slowly}) as plugin:
        threads = [threading.Thread(target=kubelet.pod) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert plugin.methods().count("RunPodSandbox") == 8
        assert not plugin.closed


def test_a_hanging_plugin_does_not_hold_up_what_it_does_not_want(own: Callable[..., Kubelet]) -> None:
    kubelet = own("plugin_request_timeout = 30.0")
    reached, go = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        reached.set()
        assert go.wait(60)

    on = {"StopPodSandbox": wait}
    with NriPlugin(kubelet.daemon.nri_socket, events=event_mask("StopPodSandbox"), on=on):
        pod = kubelet.pod()
        thread = threading.Thread(target=pod.stop)
        thread.start()
        assert reached.wait(30)
        other = kubelet.pod()
        container = other.run("/bin/sleep", "1000")
        container.stop()
        container.remove()
        go.set()
        thread.join()


# ---- synchronization ----


def test_a_late_plugin_is_told_what_there_is(kubelet: Kubelet) -> None:
    pod, stopped = kubelet.pod(), kubelet.pod()
    running, created = pod.run("/bin/sleep", "1000"), pod.create("/bin/true")
    ended = pod.run("/bin/true")
    ended.wait()
    stopped.stop()
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        assert {p.id for p in plugin.pods} == {pod.id, stopped.id}
        states = {c.id: nri.ContainerState.Name(c.state) for c in plugin.containers}
        assert states == {running.id: "CONTAINER_RUNNING", created.id: "CONTAINER_CREATED"}
        [told] = [c for c in plugin.containers if c.id == running.id]
        assert list(told.args) == ["/bin/sleep", "1000"]
        assert told.pid > 0
        assert told.pod_sandbox_id == pod.id


def test_each_container_is_told_once(own: Callable[..., Kubelet]) -> None:
    """By Synchronize or by CreateContainer, never by both and never by neither, while containers come all the time."""
    kubelet = own("plugin_request_timeout = 20.0")
    pod, made, stop = kubelet.pod(), [], threading.Event()

    def create() -> None:
        while not stop.is_set():
            made.append(pod.create("/bin/true").id)

    def slowly(_: object) -> None:
        time.sleep(0.02)

    first = NriPlugin(kubelet.daemon.nri_socket, "first", "00", on={"CreateContainer": slowly}).start()
    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    late = []
    for number in range(6):
        before = len(made)
        wait_until(lambda before=before: len(made) > before + 1)  # type: ignore[misc]
        late.append(
            NriPlugin(
                kubelet.daemon.nri_socket, f"late{number}", "50", on={"Synchronize": lambda r: time.sleep(0.05) or None}
            ).start()
        )
    stop.set()
    for thread in threads:
        thread.join()
    for plugin in (first, *late):
        synchronized = [c.id for c in plugin.containers]
        created = [a.container for a in plugin.asked if a.method == "CreateContainer"]
        assert sorted(synchronized + created) == sorted(made), plugin.name
        plugin.close()


def test_who_is_asked_while_it_is_synchronized_waits(own: Callable[..., Kubelet]) -> None:
    kubelet = own("plugin_request_timeout = 30.0")
    reached, go = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        reached.set()
        assert go.wait(60)

    plugin = NriPlugin(kubelet.daemon.nri_socket, on={"Synchronize": wait}).connect()
    plugin.register()
    assert reached.wait(30)
    ids: list[str] = []
    thread = threading.Thread(target=lambda: ids.append(kubelet.pod().id))
    thread.start()
    wait_until(lambda: [one["state"] for one in plugins(kubelet)] == ["synchronizing"])
    assert ids == []
    go.set()
    thread.join(30)
    assert plugin.methods(ids[0]) == ["RunPodSandbox"]
    assert plugin.pods == []
    plugin.close()


def test_a_large_node_is_told_in_pieces(own: Callable[..., Kubelet]) -> None:
    kubelet = own()
    big = {f"key{i}": "x" * 60_000 for i in range(10)}
    ids = set()
    for _ in range(10):
        config = kubelet.pod_config()
        config.annotations.update(big)
        ids.add(kubelet.pod(config).id)
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        assert plugin.pieces > 1
        assert {pod.id for pod in plugin.pods} == ids
    answers = {"Synchronize": lambda _: nri.SynchronizeResponse()}
    stubborn = NriPlugin(kubelet.daemon.nri_socket, "stubborn", on=answers).connect()
    stubborn.register()
    stubborn.wait(lambda: stubborn.closed)
    assert logged(kubelet.daemon, "nri plugin closed", plugin="10-stubborn", reason="synchronization")
    stubborn.close()


def test_plugins_are_synchronized_anew_after_a_crash(own: Callable[..., Kubelet]) -> None:
    kubelet = own()
    with NriPlugin(kubelet.daemon.nri_socket) as before:
        pod = kubelet.pod()
        container = pod.run("/bin/sleep", "1000")
        kubelet.daemon.kill()
        before.wait(lambda: before.closed)
    kubelet.daemon.start()
    with NriPlugin(kubelet.daemon.nri_socket) as after:
        assert [p.id for p in after.pods] == [pod.id]
        [told] = after.containers
        assert (told.id, told.state) == (container.id, nri.CONTAINER_RUNNING)
        assert list(told.args) == ["/bin/sleep", "1000"]
        pod.remove()
        assert after.methods() == ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"]


def test_it_is_told_that_the_daemon_ends(own: Callable[..., Kubelet]) -> None:
    kubelet = own()
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        kubelet.daemon.stop()
        plugin.wait(lambda: plugin.closed)
        assert plugin.methods() == ["Shutdown"]
    assert not os.path.exists(kubelet.daemon.nri_socket)
    kubelet.daemon.start()


def test_a_plugin_that_hangs_does_not_hold_up_the_end(own: Callable[..., Kubelet]) -> None:
    kubelet = own()
    with NriPlugin(kubelet.daemon.nri_socket, on={"Shutdown": hang}) as plugin:
        kubelet.daemon.stop()
        plugin.wait(lambda: plugin.closed)
    kubelet.daemon.start()


# ---- pre-installed ----


def install(daemon: Daemon, name: str, body: str, config: str = "", config_name: str = "") -> None:
    directory = daemon.directory / "nri"
    for part in ("plugins", "conf.d"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    program = directory / "plugins" / name
    program.write_text(body)
    program.chmod(0o755)
    if config:
        (directory / "conf.d" / (config_name or f"{name}.conf")).write_text(config)


PLUGIN = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.harness.nri_plugin import main
main()
"""


def test_preinstalled_plugins(own: Callable[..., Kubelet]) -> None:
    """They run before the first pod, are configured by their files, and are started again with the daemon."""

    def prepare(daemon: Daemon) -> None:
        install(daemon, "30-one", PLUGIN, str(daemon.directory / "one"))
        install(daemon, "20-two", PLUGIN, str(daemon.directory / "two"), "two.conf")
        install(daemon, "x-bad", PLUGIN)
        install(daemon, "40-broken", "#!/nonexistent\n")
        install(daemon, "50-false", "#!/bin/false\n")
        install(daemon, "60-plain", "not a program")
        (daemon.directory / "nri/plugins/60-plain").chmod(0o644)

    kubelet = own("disable_connections = true\nplugin_registration_timeout = 30.0", prepare)
    assert not os.path.exists(kubelet.daemon.nri_socket)
    shown = [(one["index"], one["name"], one["kind"]) for one in plugins(kubelet)]
    assert shown == [("20", "two", "pre-installed"), ("30", "one", "pre-installed")]
    pids = [one["pid"] for one in plugins(kubelet)]
    assert kubelet.daemon.process is not None
    assert kubelet.daemon.process.pid not in pids
    assert all(os.getpgid(pid) == pid for pid in pids), "in a session of its own"
    pod = kubelet.pod()
    for name in ("one", "two"):
        wait_until(lambda name=name: f"RunPodSandbox {pod.id}" in (kubelet.daemon.directory / name).read_text())  # type: ignore[misc]
    assert {Path(line["path"]).name for line in logged(kubelet.daemon, "nri plugin not started")} == {"x-bad", "40-broken"}
    assert logged(kubelet.daemon, "nri plugin closed", plugin="50-false")
    kubelet.daemon.kill()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    kubelet.daemon.start()
    again = [one["pid"] for one in plugins(kubelet)]
    assert len(again) == 2
    assert not set(again) & set(pids)
    kubelet.daemon.stop()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in again))
    assert (kubelet.daemon.directory / "one").read_text().splitlines()[-1] == "Shutdown"
    kubelet.daemon.start()


def test_a_preinstalled_plugin_that_stays_is_killed(own: Callable[..., Kubelet]) -> None:
    def prepare(daemon: Daemon) -> None:
        install(daemon, "30-stays", PLUGIN + "import time\ntime.sleep(3600)\n")

    kubelet = own("plugin_registration_timeout = 30.0", prepare)
    [shown] = plugins(kubelet)
    os.kill(shown["pid"], signal.SIGSTOP)
    kubelet.daemon.stop()
    assert not os.path.exists(f"/proc/{shown['pid']}")
    kubelet.daemon.start()


def test_a_preinstalled_plugin_that_dies(own: Callable[..., Kubelet]) -> None:
    kubelet = own("plugin_registration_timeout = 30.0", lambda daemon: install(daemon, "30-mortal", PLUGIN))
    [shown] = plugins(kubelet)
    os.kill(shown["pid"], signal.SIGKILL)
    wait_until(lambda: plugins(kubelet) == [])
    wait_until(lambda: bool(logged(kubelet.daemon, "nri plugin's process has ended", status=-9)))  # type: ignore[arg-type]
    assert logged(kubelet.daemon, "nri plugin closed", plugin="30-mortal", reason="left")
    kubelet.pod().run("/bin/true")


def test_another_runtime_has_the_socket(own: Callable[..., Kubelet]) -> None:
    """crisp serves without: pods are more than plugins."""
    import socket as sockets  # noqa: PLC0415

    taken = sockets.socket(sockets.AF_UNIX)

    def prepare(daemon: Daemon) -> None:
        os.makedirs(os.path.dirname(daemon.nri_socket))
        taken.bind(daemon.nri_socket)
        taken.listen()

    kubelet = own("", prepare)
    assert logged(kubelet.daemon, "nri socket not served")
    kubelet.pod().run("/bin/true")
    assert os.path.exists(kubelet.daemon.nri_socket)
    taken.close()


def test_crisp_check_names_them(own: Callable[..., Kubelet]) -> None:
    def line(kubelet: Kubelet) -> str:
        command = [*kubelet.daemon.program, "--socket", kubelet.daemon.socket, "check"]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return next(line for line in output.splitlines() if " nri " in line)

    kubelet = own()
    assert f"no plugins; plugins connect to {kubelet.daemon.nri_socket}" in line(kubelet)
    with NriPlugin(kubelet.daemon.nri_socket, "b", "20"), NriPlugin(kubelet.daemon.nri_socket, "a", "10"):
        assert "10-a, 20-b; plugins connect to" in line(kubelet)
    assert "off (nri.enabled)" in line(own("enabled = false"))


def test_crisp_uninstall_takes_a_socket_that_was_left(own: Callable[..., Kubelet]) -> None:
    """And leaves one that is served."""
    kubelet = own()
    socket = Path(kubelet.daemon.nri_socket)
    uninstall.remove_nri_socket(socket)
    assert socket.exists()
    kubelet.daemon.kill()
    assert socket.exists()
    uninstall.remove_nri_socket(socket)
    assert not socket.parent.exists()
    kubelet.daemon.start()


def test_figures(own: Callable[..., Kubelet]) -> None:
    from urllib.request import urlopen  # noqa: PLC0415

    port = 19000 + os.getpid() % 1000
    kubelet = own("plugin_request_timeout = 0.5", extra=f'[metrics]\naddress = "127.0.0.1:{port}"\n')
    with NriPlugin(kubelet.daemon.nri_socket, on={"StopPodSandbox": hang}):
        pod = kubelet.pod()
        with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            text = reply.read().decode()
        assert "crisp_nri_plugins 1.0" in text
        assert 'crisp_nri_requests_total{outcome="ok",plugin="10-tester",request="RunPodSandbox"} 1.0' in text
        assert 'crisp_nri_request_seconds_total{plugin="10-tester",request="RunPodSandbox"}' in text
        pod.stop()
    with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    assert 'crisp_nri_plugins_closed_total{reason="timeout"} 1.0' in text
    assert 'outcome="timeout",plugin="10-tester",request="StopPodSandbox"} 1.0' in text


CALLS = {
    "RunPodSandbox": ("RunPodSandbox",),
    "CreateContainer": ("CreateContainer", "ValidateContainerAdjustment", "PostCreateContainer"),
    "StartContainer": ("StartContainer", "PostStartContainer"),
    "UpdateContainerResources": ("UpdateContainer", "PostUpdateContainer"),
    "StopContainer": ("StopContainer",),
    "RemoveContainer": ("RemoveContainer",),
    "StopPodSandbox": ("StopPodSandbox",),
    "RemovePodSandbox": ("RemovePodSandbox",),
}


@pytest.mark.parametrize(("call", "request_"), [(call, request) for call, asked in CALLS.items() for request in asked])
def test_a_client_gives_up_while_a_plugin_thinks(kubelet: Kubelet, call: str, request_: str) -> None:
    """A retry finds the result or makes it; a plugin hears of the end of all of whose beginning it has heard."""
    reached, go = threading.Event(), threading.Event()

    def think(_: object) -> None:
        reached.set()
        assert go.wait(60)

    def asked(name: str, request: Any) -> Any:
        method = getattr(kubelet.runtime, name)
        if name != call:
            return method(request)
        pending = method.future(request)
        assert reached.wait(60)
        pending.cancel()
        go.set()
        if name == "StartContainer":  # goes on by itself, and cannot be done twice
            wait_until(lambda: container_state(kubelet, request.container_id) == cri.CONTAINER_RUNNING)
            return None
        return method(request)

    with NriPlugin(kubelet.daemon.nri_socket, on={request_: think}) as plugin:
        life(kubelet, asked)
        for begin, end in (("RunPodSandbox", "RemovePodSandbox"), ("CreateContainer", "RemoveContainer")):
            begun = {one.pod if "Pod" in begin else one.container for one in list(plugin.asked) if one.method == begin}
            assert begun
            for key in begun:
                plugin.wait(lambda key=key, end=end: plugin.methods(key)[-1:] == [end])  # type: ignore[misc]
                for event in (begin, begin.replace("Run", "Stop").replace("Create", "Stop"), end):
                    assert plugin.methods(key).count(event) == 1
    assert not kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items


def container_state(kubelet: Kubelet, key: str) -> int:
    status = kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=key)).status
    return int(status.state)


def life(kubelet: Kubelet, call: Callable[[str, Any], Any]) -> None:
    """A pod with a container from its beginning to its end; each call is made by `call`."""
    pod = kubelet.pod_config()
    pod_id = call("RunPodSandbox", cri.RunPodSandboxRequest(config=pod)).pod_sandbox_id
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="c"),
        image=cri.ImageSpec(image=kubelet.image),
        command=["/bin/sleep", "1000"],
        log_path="c.log",
    )
    create = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
    key = call("CreateContainer", create).container_id
    call("StartContainer", cri.StartContainerRequest(container_id=key))
    resources = cri.LinuxContainerResources(**some_limit(512))
    call("UpdateContainerResources", cri.UpdateContainerResourcesRequest(container_id=key, linux=resources))
    call("StopContainer", cri.StopContainerRequest(container_id=key, timeout=0))
    call("RemoveContainer", cri.RemoveContainerRequest(container_id=key))
    call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
