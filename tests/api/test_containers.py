"""CreateContainer, StartContainer, StopContainer, RemoveContainer, ListContainers, ContainerStatus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kernel import cgroups
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

MIB = 1024 * 1024


def config(**fields: object) -> cri.ContainerConfig:
    return cri.ContainerConfig(**fields)


def cgroup_file(container: Container, controller: str, name: str) -> Path:
    """A control file of the container's group."""
    hierarchies = cgroups.detect()
    group = hierarchies.group(cgroups.of_process(pid_of(container), hierarchies))
    return Path(group.directory(controller), name)


def cgroup_value(container: Container, controller: str, name: str) -> str:
    return cgroup_file(container, controller, name).read_text().strip()


def pid_of(container: Container) -> int:
    """Its init on the host, from the verbose status."""

    reply = container.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
    return int(json.loads(reply.info["info"])["pid"])


def test_life_of_a_container(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.create("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    status = container.status()
    assert status.state == cri.CONTAINER_CREATED
    assert status.created_at > 0
    assert (status.started_at, status.finished_at) == (0, 0)
    assert status.image_id == status.image_ref == kubelet.image
    container.start()
    assert os.path.exists(status.log_path)
    status = container.wait()
    assert status.state == cri.CONTAINER_EXITED
    assert (status.exit_code, status.reason) == (7, "Error")
    assert 0 < status.created_at < status.started_at < status.finished_at
    assert sorted(container.log_lines()) == [("stderr", "F", "err"), ("stdout", "F", "out")]
    container.stop()
    container.remove()
    with pytest.raises(grpc.RpcError) as caught:
        container.status()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    container.remove()
    container.stop(5)


def test_completed(kubelet: Kubelet) -> None:
    status = kubelet.pod().shell("true").status()
    assert (status.exit_code, status.reason) == (0, "Completed")


def test_killed_by_signal(kubelet: Kubelet) -> None:
    # The init of a PID namespace is deaf to its own signals.
    status = kubelet.pod(pid=cri.NODE).shell("kill -SEGV $$").status()
    assert (status.exit_code, status.reason) == (128 + signal.SIGSEGV, "Error")


@pytest.mark.controllers("memory")
def test_out_of_memory(kubelet: Kubelet) -> None:
    wanted = config()
    wanted.linux.resources.memory_limit_in_bytes = 32 * MIB
    container = kubelet.pod().shell("x=a; while true; do x=$x$x; done", wanted)
    status = container.status()
    assert status.reason == "OOMKilled"
    assert status.exit_code == 137


def test_stop_signal_then_grace_then_kill(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    polite = pod.run_trap("echo bye; exit 5", "TERM")
    polite.stop(10)
    assert polite.status().exit_code == 5
    assert polite.output() == "set\nbye\n"
    deaf = pod.run_trap("", "TERM")
    deaf.stop(1)
    assert deaf.status().exit_code == 137
    asked = config(stop_signal=cri.SIGNAL_SIGUSR1)
    other = pod.run_trap("exit 9", "USR1", asked)
    assert other.status().stop_signal == cri.SIGNAL_SIGUSR1
    other.stop(10)
    assert other.status().exit_code == 9


def test_stop_takes_the_whole_tree(kubelet: Kubelet) -> None:
    """In the node's PID namespace the kernel does not end children with their init: the cgroup has to be killed."""
    cfg = kubelet.pod_config(pid=cri.NODE)
    container = kubelet.pod(cfg).run("/bin/sh", "-c", "(setsid sleep 4321 &) ; setsid sleep 4321 & exec sleep 4321")
    hierarchies = cgroups.detect()
    group = hierarchies.group(cgroups.of_process(pid_of(container), hierarchies))
    container.stop(0)
    assert not group.procs()


def test_remove_while_it_runs(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "100")
    container.remove()
    assert container.id not in {c.id for c in kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers}


def test_retry_with_the_same_attempt_gets_the_same_container(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    wanted = cri.ContainerConfig(metadata={"name": "a"}, image={"image": kubelet.image}, command=["/bin/true"])
    request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=wanted, sandbox_config=pod.config)
    with ThreadPoolExecutor(8) as pool:
        ids = {r.container_id for r in pool.map(kubelet.runtime.CreateContainer, [request] * 8)}
    assert len(ids) == 1
    request.config.command.append("changed")
    with pytest.raises(grpc.RpcError, match="another configuration") as caught:
        kubelet.runtime.CreateContainer(request)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    request.config.metadata.attempt = 1
    assert kubelet.runtime.CreateContainer(request).container_id not in ids


def test_filters(kubelet: Kubelet) -> None:
    pod, other = kubelet.pod(), kubelet.pod()
    running = pod.run("/bin/sleep", "100", config=config(labels={"a": "1"}))
    ended = pod.shell("true", config(labels={"a": "2"}))
    created = other.create("/bin/true")

    def listed(**fields: object) -> set[str]:
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(**fields))
        return {c.id for c in kubelet.runtime.ListContainers(request).containers}

    assert listed() == {running.id, ended.id, created.id}
    assert listed(id=running.id[:10]) == {running.id}
    assert listed(pod_sandbox_id=pod.id) == {running.id, ended.id}
    assert listed(label_selector={"a": "2"}) == {ended.id}
    assert listed(state=cri.ContainerStateValue(state=cri.CONTAINER_EXITED)) == {ended.id}
    assert listed(state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED)) == {created.id}


def test_labels_and_annotations_come_back_byte_for_byte(kubelet: Kubelet) -> None:
    odd = {"a/b": ' {"x": [1, "ä"]}\n', "empty": ""}
    container = kubelet.pod().create("/bin/true", config=config(labels=odd, annotations=odd))
    status = container.status()
    assert dict(status.labels) == odd
    assert dict(status.annotations) == odd


def test_environment_and_working_directory(kubelet: Kubelet) -> None:
    wanted = config(working_dir="/made/up", envs=[cri.KeyValue(key="A", value=b"1 2"), cri.KeyValue(key="B", value=b"")])
    container = kubelet.pod().shell('pwd; echo "$A|$B|$PATH"', wanted)
    assert container.output() == "/made/up\n1 2||/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, "uid=0(root) gid=0(root)"),
        ({"run_as_user": {"value": 1000}}, "uid=1000(app) gid=1000(app) groups=1000(app),50000(extra),50001(more)"),
        ({"run_as_username": "www"}, "uid=33(www) gid=33(www) groups=33(www),50001(more)"),
        ({"run_as_user": {"value": 4242}}, "uid=4242 gid=0(root)"),
        (
            {"run_as_user": {"value": 1000}, "run_as_group": {"value": 77}, "supplemental_groups": [88]},
            "uid=1000(app) gid=77 groups=77,88,50000(extra),50001(more)",
        ),
        (
            {"run_as_user": {"value": 1000}, "supplemental_groups": [88], "supplemental_groups_policy": "Strict"},
            "uid=1000(app) gid=1000(app) groups=1000(app),88",
        ),
    ],
)
def test_users_and_groups(kubelet: Kubelet, context: dict[str, object], expected: str) -> None:
    wanted = config()
    wanted.linux.security_context.MergeFrom(cri.LinuxContainerSecurityContext(**context))  # type: ignore[arg-type]
    container = kubelet.pod().shell("id", wanted)
    found, asked = container.output().split(), expected.split()
    assert found[:2] == asked[:2]
    groups = lambda words: set(words[2].removeprefix("groups=").split(",")) if len(words) > 2 else set()  # noqa: E731
    assert groups(found) - {"0(root)"} == groups(asked) or groups(found) == groups(asked)
    user = container.status().user.linux
    assert f"uid={user.uid}" in expected
    assert f"gid={user.gid}" in expected


def test_missing_user(kubelet: Kubelet) -> None:
    wanted = config()
    wanted.linux.security_context.run_as_username = "nobody-here"
    with pytest.raises(grpc.RpcError, match="nobody-here"):
        kubelet.pod().create("/bin/true", config=wanted)


def test_capabilities_and_no_new_privs(kubelet: Kubelet) -> None:
    wanted = config()
    wanted.linux.security_context.capabilities.drop_capabilities.append("ALL")
    wanted.linux.security_context.capabilities.add_capabilities.append("NET_BIND_SERVICE")
    wanted.linux.security_context.no_new_privs = True
    lines = dict(line.split(":\t") for line in kubelet.pod().shell("cat /proc/self/status", wanted).output().splitlines())
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(lines[name], 16) == 1 << 10, name
    assert int(lines["CapInh"], 16) == int(lines["CapAmb"], 16) == 0
    assert lines["NoNewPrivs"] == "1"


def test_privileged(kubelet: Kubelet) -> None:
    cfg = kubelet.pod_config()
    wanted = config()
    wanted.linux.security_context.privileged = True
    with pytest.raises(grpc.RpcError, match="its sandbox is not"):
        kubelet.pod().create("/bin/true", config=wanted)
    cfg.linux.security_context.privileged = True
    container = kubelet.pod(cfg).run("/bin/sleep", "100", config=wanted)
    assert container.sh("ls /dev/vda || ls /dev/sda || ls /dev/loop0").strip()
    assert " rw" in container.sh("grep ' /sys ' /proc/mounts").replace(",", " ").replace("(", " ")
    container.sh("mount -t tmpfs none /tmp && umount /tmp")
    unprivileged = kubelet.pod().run("/bin/sleep", "100")
    assert unprivileged.exec("/bin/sh", "-c", "mount -t tmpfs none /tmp").exit_code != 0


def test_read_only_root(kubelet: Kubelet) -> None:
    wanted = config()
    wanted.linux.security_context.readonly_rootfs = True
    assert "Read-only" in kubelet.pod().shell("touch /x", wanted).output("stderr")


def test_masked_and_readonly_paths(kubelet: Kubelet) -> None:
    wanted = config()
    wanted.linux.security_context.masked_paths.extend(["/proc/kcore", "/sys/firmware", "/not/there"])
    wanted.linux.security_context.readonly_paths.append("/proc/sys")
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    assert container.sh("cat /proc/kcore; ls /sys/firmware") == ""
    assert container.exec("/bin/sh", "-c", "echo 1 > /proc/sys/kernel/shm_rmid_forced").exit_code != 0


def test_mounts(kubelet: Kubelet, tmp_path: Path) -> None:
    source = tmp_path / "volume"
    source.mkdir()
    (source / "file").write_text("from the host\n")
    (tmp_path / "link").symlink_to(source)
    missing = tmp_path / "not" / "there"
    wanted = config(
        mounts=[
            cri.Mount(container_path="/rw", host_path=str(source)),
            cri.Mount(container_path="/ro", host_path=str(tmp_path / "link"), readonly=True),
            cri.Mount(container_path="/one", host_path=str(source / "file")),
            cri.Mount(container_path="/made", host_path=str(missing)),
            cri.Mount(container_path="/rw/deep/er", host_path=str(source)),
        ]
    )
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    assert container.sh("cat /rw/file /ro/file /one /rw/deep/er/file") == "from the host\n" * 4
    container.sh("echo x > /rw/new; echo y > /made/new")
    assert (source / "new").read_text() == "x\n"
    assert (missing / "new").read_text() == "y\n"
    assert stat.S_IMODE(missing.stat().st_mode) == 0o755
    assert container.exec("/bin/touch", "/ro/x").exit_code != 0
    assert list(container.status().mounts) == list(wanted.mounts)


def test_bad_mounts(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    for mount, message in (
        (cri.Mount(container_path="/a", host_path="relative"), "not absolute"),
        (cri.Mount(container_path="a", host_path="/tmp"), "not absolute"),
        (cri.Mount(container_path="/a", host_path="/tmp", recursive_read_only=True), "needs readonly"),
        (cri.Mount(container_path="/a"), "neither a host path nor an image"),
    ):
        with pytest.raises(grpc.RpcError, match=message):
            pod.create("/bin/true", config=config(mounts=[mount]))


def test_devices(kubelet: Kubelet) -> None:
    device = cri.Device(host_path="/dev/null", container_path="/dev/nil", permissions="rwm")
    container = kubelet.pod().run("/bin/sleep", "100", config=config(devices=[device]))
    assert container.sh("stat -c %t:%T /dev/nil").strip() == "1:3"
    container.sh("echo x > /dev/nil; head -c 1 /dev/zero > /dev/null; head -c1 /dev/urandom > /dev/null")
    # Making a node is allowed; opening what was not given is not.
    assert container.exec("/bin/sh", "-c", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem").exit_code != 0


@pytest.mark.controllers("cpuset", "memory")
def test_resources(kubelet: Kubelet) -> None:
    wanted = config()
    limits = wanted.linux.resources
    limits.cpu_shares, limits.cpu_quota, limits.cpu_period = 512, 50000, 100000
    limits.cpuset_cpus, limits.memory_limit_in_bytes, limits.oom_score_adj = "0", 64 * MIB, 500
    limits.hugepage_limits.add(page_size="2MB", limit=0)
    limits.unified["memory.high"] = "33554432"
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    assert cgroup_value(container, "memory", "memory.limit_in_bytes") == str(64 * MIB)
    assert cgroup_value(container, "cpu", "cpu.shares") == "512"
    assert cgroup_value(container, "cpu", "cpu.cfs_quota_us") == "50000"
    assert cgroup_value(container, "cpuset", "cpuset.cpus") == "0"
    assert container.sh("cat /proc/1/oom_score_adj").strip() == "500"
    high = cgroup_file(container, "memory", "memory.high")
    if high.exists():  # cgroup v1 has none, and says so by leaving it out of what is told
        assert high.read_text().strip() == "33554432"
    assert container.status().resources.linux == limits


def test_oom_score_below_ours_is_clamped(kubelet: Kubelet) -> None:
    wanted = config()
    wanted.linux.resources.oom_score_adj = -998
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    assert int(container.sh("cat /proc/1/oom_score_adj")) in (-998, int(Path("/proc/self/oom_score_adj").read_text()))


def test_open_file_limit(kubelet: Kubelet) -> None:
    soft, hard = kubelet.pod().shell("ulimit -Sn; ulimit -Hn").output().split()
    assert int(soft) == 1024
    assert int(hard) <= 524288


def seccomp(kind: int, reference: str = "") -> cri.ContainerConfig:
    wanted = config()
    wanted.linux.security_context.seccomp.profile_type = kind
    wanted.linux.security_context.seccomp.localhost_ref = reference
    return wanted


def test_seccomp(kubelet: Kubelet, tmp_path: Path) -> None:
    pod = kubelet.pod()
    mode = "grep Seccomp: /proc/self/status"
    unshare = "unshare -U true 2>/dev/null && echo yes || echo no"
    assert pod.shell(mode, seccomp(cri.SecurityProfile.Unconfined)).output().split()[1] == "0"
    assert pod.shell(unshare, seccomp(cri.SecurityProfile.Unconfined)).output() == "yes\n"
    assert pod.shell(mode, seccomp(cri.SecurityProfile.RuntimeDefault)).output().split()[1] == "2"
    assert pod.shell(unshare, seccomp(cri.SecurityProfile.RuntimeDefault)).output() == "no\n"
    profile = tmp_path / "no-mkdir.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
        '[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}'
    )
    result = pod.shell("mkdir /d", seccomp(cri.SecurityProfile.Localhost, str(profile)))
    assert "Operation not permitted" in result.output("stderr")
    with pytest.raises(grpc.RpcError, match=r"gone\.json"):
        pod.create("/bin/true", config=seccomp(cri.SecurityProfile.Localhost, str(tmp_path / "gone.json")))


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_missing_command_fails_the_start(kubelet: Kubelet, handler: str) -> None:
    """The pod fails with StartError, and a Job counts it; a CreateContainer that fails would be tried again for ever."""
    kubelet.need_handler(handler)
    container = kubelet.pod(handler=handler).create("/bin/no-such-thing")
    assert container.status().state == cri.CONTAINER_CREATED
    kubelet.daemon.kill()
    kubelet.daemon.start()
    assert container.status().state == cri.CONTAINER_CREATED
    with pytest.raises(grpc.RpcError, match='exec: "/bin/no-such-thing": no such file or directory'):
        container.start()
    status = container.wait()
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
    assert 'exec: "/bin/no-such-thing"' in status.message
    unstarted = container.pod.create("/bin/no-such-thing")
    unstarted.stop()
    assert (unstarted.status().state, unstarted.status().exit_code) == (cri.CONTAINER_EXITED, 137)
    unstarted.remove()


@pytest.mark.parametrize("handler", ["crun", "runc"])
@pytest.mark.parametrize("mapped", [False, True])
def test_streams_can_be_opened_by_who_has_dropped_rights(kubelet: Kubelet, handler: str, mapped: bool) -> None:
    """nginx writes its log to /dev/stdout as another user than it was started as."""
    kubelet.need_handler(handler, user_namespaces=mapped)
    pod_config = kubelet.pod_config()
    if mapped:
        options = pod_config.linux.security_context.namespace_options.userns_options
        options.mode = cri.POD
        options.uids.add(host_id=200000, container_id=0, length=65536)
        options.gids.add(host_id=200000, container_id=0, length=65536)
    script = "su app -s /bin/sh -c 'echo out >/dev/stdout; echo err >/dev/stderr'"
    pod = kubelet.pod(pod_config, handler=handler)
    done = pod.shell(script)
    assert (done.status().exit_code, done.output(), done.output("stderr")) == (0, "out\n", "err\n")
    reply = pod.run("/bin/sleep", "1000").exec("/bin/sh", "-c", script)
    assert (reply.exit_code, reply.stdout, reply.stderr) == (0, b"out\n", b"err\n")


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_bytes_that_are_no_text(kubelet: Kubelet, handler: str) -> None:
    """A variable is any bytes, and may be a secret: the container starts, and no error has what the variable holds."""
    kubelet.need_handler(handler)
    pod = kubelet.pod(handler=handler)
    value = config(envs=[cri.KeyValue(key="A", value=b"a\xffb"), cri.KeyValue(key="SECRET", value=b"hunter2")])
    shown = pod.shell("echo $A", value).output()
    assert shown in ("a\xffb\n", "a\ufffdb\n")
    with pytest.raises(grpc.RpcError, match=r"process\.env\[\d+\] \(SECRET\) holds a zero byte") as caught:
        pod.create("/bin/true", config=config(envs=[cri.KeyValue(key="SECRET", value=b"hunter2\0")]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "hunter2" not in str(caught.value.details()) + kubelet.daemon.log_path.read_text()


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_mounts_through_links_to_nothing(kubelet: Kubelet, handler: str, tmp_path: Path, rootfs: Path) -> None:
    """`/var/run -> /run` in an image without /run: what the link names is made, inside the root."""
    kubelet.need_handler(handler)
    source = tmp_path / "volume"
    source.mkdir()
    (source / "file").write_text("here\n")
    image = tmp_path / "image"
    shutil.copytree(rootfs, image, symlinks=True)
    (image / "var/run").symlink_to("/run/away")
    (image / "var/up").symlink_to("../../../up")
    (image / "var/conf").symlink_to("/made/conf")
    (image / "loop").symlink_to("loop")
    request = admin.AddRootfsRequest(name=f"localhost/links-{handler}:test", directory=str(image))
    made = kubelet.client.admin.AddRootfs(request).image_id
    wanted = cri.ContainerConfig(image=cri.ImageSpec(image=made))
    for place in ("/var/run", "/var/up/below", "/var/run/deep/er"):
        wanted.mounts.add(container_path=place, host_path=str(source))
    wanted.mounts.add(container_path="/var/conf", host_path=str(source / "file"))
    pod = kubelet.pod(handler=handler)
    container = pod.run("/bin/sleep", "1000", config=wanted)
    listed = container.sh("cat /run/away/file /up/below/file /run/away/deep/er/file /var/conf; readlink /var/run")
    assert listed == "here\n" * 4 + "/run/away\n"
    assert not Path("/run/away").exists()
    circle = cri.ContainerConfig(image=cri.ImageSpec(image=made))
    circle.mounts.add(container_path="/loop/x", host_path=str(source))
    with pytest.raises(grpc.RpcError, match="too many levels of symbolic links") as caught:
        pod.create("/bin/true", config=circle)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_create_that_is_refused_leaves_no_shim(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    shims = cgroups.detect().group(f"{kubelet.daemon.cgroup_parent.strip('/')}/shims")
    before = shims.procs()
    wanted = cri.ContainerConfig()
    wanted.linux.security_context.run_as_group.value = 5
    with pytest.raises(grpc.RpcError, match="run_as_group needs run_as_user"):
        pod.create("/bin/true", config=wanted)
    wait_until(lambda: shims.procs() <= before)
    # A shim that is there by the time the create fails, and was asked for nothing.
    kubelet.daemon.kill()
    kubelet.daemon.start(failpoint="container.shim")
    with pytest.raises(grpc.RpcError):
        pod.create("/bin/true")
    kubelet.daemon.wait_death()
    kubelet.daemon.start()
    wait_until(lambda: shims.procs() <= before)


def test_log_path_stays_in_the_pods_directory(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.create("/bin/true", config=config(log_path="/absolute.log"))
    assert container.status().log_path == f"{pod.config.log_directory}/absolute.log"


def test_log_that_cannot_be_opened_says_so(kubelet: Kubelet) -> None:
    container = kubelet.pod().create("/bin/true")
    Path(container.status().log_path).mkdir()
    with pytest.raises(grpc.RpcError, match="Is a directory"):
        container.start()
    status = container.wait()
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert "Is a directory" in status.message


def test_missing_image_and_ids(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    with pytest.raises(grpc.RpcError, match="pull it first") as caught:
        pod.create("/bin/true", config=config(image={"image": "nowhere/nothing:1"}))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.runtime.StartContainer(cri.StartContainerRequest(container_id="f" * 64))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.runtime.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id="f" * 64, config=config(metadata={"name": "x"}))
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    pod.stop()
    with pytest.raises(grpc.RpcError, match="not ready") as caught:
        pod.create("/bin/true")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_start_twice(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "100")
    with pytest.raises(grpc.RpcError, match="is running: cannot start it"):
        container.start()
    container.stop()
    with pytest.raises(grpc.RpcError, match="is exited: cannot start it"):
        container.start()


def test_terminal(kubelet: Kubelet) -> None:
    container = kubelet.pod().shell("tty; echo $TERM; stty size", config(tty=True, stdin=True))
    assert container.output().split()[:2] == ["/dev/pts/0", "xterm"]


def test_log_path_is_never_empty(kubelet: Kubelet) -> None:
    cfg = kubelet.pod_config()
    cfg.log_directory = ""
    reply = kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=cfg))
    wanted = cri.ContainerConfig(metadata={"name": "c"}, image={"image": kubelet.image}, command=["/bin/echo", "hi"])
    request = cri.CreateContainerRequest(pod_sandbox_id=reply.pod_sandbox_id, config=wanted, sandbox_config=cfg)
    container_id = kubelet.runtime.CreateContainer(request).container_id
    kubelet.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id))
    status = kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container_id)).status
    assert status.log_path.startswith(str(kubelet.daemon.root))


def test_log_path_cannot_leave_its_directory(kubelet: Kubelet) -> None:
    with pytest.raises(grpc.RpcError, match="leaves the pod's log directory"):
        kubelet.pod().create("/bin/true", config=config(log_path="../../x.log"))


def test_a_container_cannot_hide_or_keep_what_it_writes_by_depth(kubelet: Kubelet) -> None:
    """1500 directories in each other, with a file at the bottom: counted, and removed with the container."""
    pod = kubelet.pod()
    script = (
        "cd /tmp; i=0; while [ $i -lt 1500 ]; do mkdir d && cd d || exit 3; i=$((i+1)); done;"
        " head -c 3000000 /dev/zero > file; echo made; exec sleep 600"
    )
    container = pod.run("/bin/sh", "-c", script)
    wait_until(lambda: "made" in container.output())
    request = cri.ContainerStatsRequest(container_id=container.id)

    def counted() -> bool:
        layer = container.runtime.ContainerStats(request).stats.writable_layer
        return layer.inodes_used.value > 1500 and layer.used_bytes.value > 3_000_000

    wait_until(counted)
    container.stop()
    container.remove()
    with pytest.raises(grpc.RpcError) as caught:
        container.status()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
