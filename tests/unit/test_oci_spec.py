"""The OCI configuration: what a request means, and what is cut down to what the host has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagesvc.store.images import OciConfig
from kernel.capabilities import NAMES
from kernel.cgroups import Hierarchies, Mode
from proto import api_pb2 as cri
from proto import oci_annotations
from proto.errors import Code, CrispError
from runtime.config.settings import ContainersConfig
from runtime.host.host import Host
from runtime.oci import devices, mounts, process, resources, seccomp, spec, ulimits
from runtime.oci.mounts import Source

IMAGE = OciConfig(entrypoint=("/entry",), cmd=("a", "b"), env=("PATH=/bin", "A=1"), working_dir="/w", user="app")


def host(**changes: Any) -> Host:
    facts: dict[str, Any] = {
        "capabilities": frozenset(NAMES) - {"CAP_SYS_RESOURCE"},
        "known_capabilities": frozenset(NAMES),
        "hierarchies": Hierarchies(Mode.V1, {"memory": "/nowhere"}, ""),
        "systemd_cgroups": False,
        "has_swap_accounting": False,
        "has_seccomp": True,
        "has_apparmor": False,
        "has_selinux": False,
        "has_mqueue": True,
        "has_project_quota": False,
        "lowest_oom_score_adj": 0,
        "nofile_limit": 4096,
    }
    return Host(**(facts | changes))


def config(**fields: Any) -> cri.ContainerConfig:
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), **fields)


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["/entry", "a", "b"]),
        ([], ["x"], ["/entry", "x"]),
        (["/c"], [], ["/c"]),
        (["/c"], ["x"], ["/c", "x"]),
    ],
)
def test_command_and_args_against_the_image(command: list[str], args: list[str], expected: list[str]) -> None:
    assert process.arguments(config(command=command, args=args), IMAGE) == expected


def test_no_command_at_all() -> None:
    with pytest.raises(CrispError, match="no command"):
        process.arguments(config(), OciConfig())


def test_environment_later_wins_and_bytes_pass() -> None:
    asked = config(tty=True)
    asked.envs.add(key="A", value=b"2")
    asked.envs.add(key="RAW", value=b"\xff")
    env = process.environment(asked, IMAGE, "pod-1")
    assert dict(entry.split("=", 1) for entry in env) == {
        "TERM": "xterm",
        "HOSTNAME": "pod-1",
        "PATH": "/bin",
        "A": "2",
        "RAW": "\udcff",
    }
    assert len({entry.partition("=")[0] for entry in env}) == len(env)
    assert process.environment(config(), OciConfig(), "")[0].startswith("PATH=/usr/local/sbin")


def test_user_of_request_before_image() -> None:
    asked = config()
    assert process.user(asked, IMAGE).user == "app"
    asked.linux.security_context.run_as_username = "www"
    assert process.user(asked, IMAGE).user == "www"
    asked.linux.security_context.run_as_user.value = 0
    asked.linux.security_context.supplemental_groups_policy = cri.Strict
    chosen = process.user(asked, IMAGE)
    assert (chosen.user, chosen.strict, chosen.group) == ("0", True, None)


def test_group_needs_a_user() -> None:
    asked = config()
    asked.linux.security_context.run_as_group.value = 5
    with pytest.raises(CrispError, match="run_as_group"):
        process.user(asked, OciConfig())
    assert process.user(asked, IMAGE).group == 5


def capabilities_of(add: list[str], drop: list[str], ambient: tuple[str, ...] = (), **changes: Any) -> dict[str, list[str]]:
    asked = config()
    wanted = asked.linux.security_context.capabilities
    wanted.add_capabilities.extend(add)
    wanted.drop_capabilities.extend(drop)
    wanted.add_ambient_capabilities.extend(ambient)
    return process.capabilities(asked, host(**changes))


def test_capabilities() -> None:
    assert set(capabilities_of([], [])["bounding"]) == process.DEFAULT_CAPABILITIES
    assert capabilities_of([], ["ALL"])["bounding"] == []
    assert capabilities_of(["net_admin"], ["ALL"])["bounding"] == ["CAP_NET_ADMIN"]
    everything = set(capabilities_of(["ALL"], ["CHOWN"])["bounding"])
    assert everything == set(NAMES) - {"CAP_SYS_RESOURCE", "CAP_CHOWN"}
    sets = capabilities_of(["SYS_TIME"], [])
    assert sets["ambient"] == sets["inheritable"] == []
    assert sets["effective"] == sets["permitted"] == sets["bounding"]
    ambient = capabilities_of([], ["ALL"], ("KILL", "SYS_RESOURCE"))
    assert ambient["ambient"] == ambient["inheritable"] == ["CAP_KILL"]


def test_unknown_capability() -> None:
    with pytest.raises(CrispError, match="FLY"):
        capabilities_of(["FLY"], [])


def test_privileged_gets_what_the_host_has() -> None:
    asked = config()
    asked.linux.security_context.privileged = True
    assert process.capabilities(asked, host())["bounding"] == sorted(set(NAMES) - {"CAP_SYS_RESOURCE"})


def test_limits_are_clamped_to_the_host() -> None:
    assert process.oom_score_adj(-998, host()) == 0
    assert process.oom_score_adj(-998, host(lowest_oom_score_adj=-1000)) == -998
    assert process.oom_score_adj(500, host()) == 500
    assert ulimits.build(ContainersConfig().limits(), {}, host()) == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]


def test_resources() -> None:
    asked = cri.LinuxContainerResources(
        cpu_shares=512,
        cpu_quota=20000,
        cpu_period=100000,
        cpuset_cpus="0-1",
        memory_limit_in_bytes=1 << 20,
        memory_swap_limit_in_bytes=1 << 20,
        hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=0)],
        unified={"memory.high": "1"},
    )
    assert resources.build(asked, host()) == {
        "cpu": {"shares": 512, "quota": 20000, "period": 100000, "cpus": "0-1"},
        "memory": {"limit": 1 << 20},
    }
    able = host(hierarchies=Hierarchies(Mode.V2, {"memory": "/x", "hugetlb": "/x"}, "/x"), has_swap_accounting=True)
    full = resources.build(asked, able)
    assert full["memory"] == {"limit": 1 << 20, "swap": 1 << 20}
    for asked, given in (
        ({"memory_limit_in_bytes": 5}, {"limit": 5, "swap": 5}),
        ({"memory_limit_in_bytes": 5, "memory_swap_limit_in_bytes": 9}, {"limit": 5, "swap": 9}),
        ({"memory_limit_in_bytes": -1}, {"limit": -1, "swap": -1}),
        ({"memory_limit_in_bytes": 5, "unified": {"memory.swap.max": "7"}}, {"limit": 5}),
    ):
        assert resources.build(cri.LinuxContainerResources(**asked), able)["memory"] == given
    assert full["hugepageLimits"] == [{"pageSize": "2MB", "limit": 0}]
    assert full["unified"] == {"memory.high": "1"}


def bind(path: str, *, propagation: str = "shared", rro: bool = False, **fields: Any) -> dict[str, Any]:
    return mounts.client_mount(
        cri.Mount(container_path=path, host_path="/src", **fields), Source("/real", True, propagation), rro=rro
    )


def test_client_mounts() -> None:
    assert bind("/a/../b", readonly=True) == {
        "destination": "/b",
        "type": "bind",
        "source": "/real",
        "options": ["rbind", "rprivate", "ro"],
    }
    assert bind("/a", mount_options=["noexec"])["options"][-1] == "noexec"
    assert "rro" in bind("/a", rro=True, readonly=True, recursive_read_only=True)["options"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recursive_read_only": True}, "needs readonly"),
        ({"recursive_read_only": True, "readonly": True}, "^RROUnsupported"),
        ({"mount_options": ["suid"]}, "suid"),
    ],
)
def test_bad_client_mounts(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CrispError, match=message):
        bind("/a", **fields)


@pytest.mark.parametrize(
    ("asked", "lies_on", "becomes"),
    [
        (cri.PROPAGATION_PRIVATE, "shared", "rprivate"),
        (cri.PROPAGATION_HOST_TO_CONTAINER, "shared", "rslave"),
        (cri.PROPAGATION_HOST_TO_CONTAINER, "private", "rprivate"),
        (cri.PROPAGATION_BIDIRECTIONAL, "shared", "rshared"),
        (cri.PROPAGATION_BIDIRECTIONAL, "slave", "rslave"),
        (cri.PROPAGATION_BIDIRECTIONAL, "private", "rprivate"),
    ],
)
def test_propagation_is_clamped(asked: int, lies_on: str, becomes: str) -> None:
    """Only where the host's root itself is private."""
    mount = cri.Mount(container_path="/a", host_path="/src", propagation=asked)
    source = Source("/real", True, lies_on, mount_point="/")
    assert becomes in mounts.client_mount(mount, source, rro=False)["options"]
    elsewhere = Source("/real", True, lies_on, mount_point="/mnt")
    if becomes in ("rprivate", "rshared") and mounts.PROPAGATION[asked] == becomes:
        assert becomes in mounts.client_mount(mount, elsewhere, rro=False)["options"]
    elif mounts.PROPAGATION[asked] != becomes:
        with pytest.raises(CrispError, match="path /src is mounted on /mnt, but it is not a shared"):
            mounts.client_mount(mount, elsewhere, rro=False)


def test_a_bind_keeps_the_flags_of_what_it_binds() -> None:
    mount = cri.Mount(container_path="/a", host_path="/src", mount_options=["nodev"])
    source = Source("/real", True, "private", flags=("nosuid", "nodev", "ro"))
    found = mounts.client_mount(mount, source, rro=False)["options"]
    assert sorted(found) == ["nodev", "nosuid", "rbind", "ro", "rprivate"]
    [shm] = [m for m in mounts.pod_files(Path("/p"), host_ipc=False, readonly=False) if m["destination"] == "/dev/shm"]
    assert {"nosuid", "nodev", "noexec", "rw"} <= set(shm["options"])


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu_quota": 1},
        {"cpu_quota": -2},
        {"cpu_period": 999},
        {"cpu_period": 1_000_001},
        {"cpu_shares": 1},
        {"cpu_shares": -1},
        {"cpu_shares": 2**40},
        {"cpuset_cpus": "abc"},
        {"cpuset_cpus": "0-"},
        {"cpuset_mems": "0,,1"},
        {"memory_limit_in_bytes": -5},
        {"memory_limit_in_bytes": 10, "memory_swap_limit_in_bytes": 5},
        {"oom_score_adj": 1001},
    ],
)
def test_resources_that_no_kernel_takes(fields: dict[str, Any]) -> None:
    with pytest.raises(CrispError, match=next(reversed(fields))) as refused:
        resources.build(cri.LinuxContainerResources(**fields), host())
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_relative_working_directories_are_below_the_root() -> None:
    for wanted, image, expected in (("", "", "/"), ("app", "", "/app"), ("", "srv/app", "/srv/app"), ("/x", "y", "/x")):
        built = process.build(config(working_dir=wanted), OciConfig(cmd=("c",), working_dir=image), "", [], host())
        assert built["cwd"] == expected


def test_mounts_are_arranged_by_depth_and_replace_defaults() -> None:
    defaults = mounts.default_mounts(privileged=False, cgroup_v2=False, mqueue=True)
    arranged = mounts.arrange(defaults, [bind("/a/b"), bind("/a"), bind("/dev/shm"), {**bind("/a"), "destination": "/"}])
    places = [mount["destination"] for mount in arranged]
    assert places[0] == "/"
    assert places.index("/a") < places.index("/a/b")
    assert places.count("/dev/shm") == 1
    assert places.index("/dev") < places.index("/dev/pts")
    with pytest.raises(CrispError, match="over the container's root"):
        bind("/")
    with pytest.raises(CrispError, match="two mounts"):
        mounts.arrange([], [bind("/x"), bind("/x/")])


def test_devices() -> None:
    nodes, rules = devices.requested([cri.Device(host_path="/dev/null", container_path="/dev/nil", permissions="rw")], None)
    assert nodes[0]["path"] == "/dev/nil"
    assert (nodes[0]["major"], nodes[0]["minor"], nodes[0]["type"]) == (1, 3, "c")
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-1] == {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}
    owned, _ = devices.requested([cri.Device(host_path="/dev/zero")], (7, 8))
    assert (owned[0]["uid"], owned[0]["gid"]) == (7, 8)
    for bad in (
        cri.Device(host_path="/dev/nope"),
        cri.Device(host_path="/etc/passwd"),
        cri.Device(host_path="/dev/null", permissions="x"),
    ):
        with pytest.raises(CrispError, match=bad.host_path):
            devices.requested([bad], None)


def names_allowed(profile: dict[str, Any]) -> set[str]:
    return {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_default_seccomp_profile_depends_on_capabilities() -> None:
    plain = seccomp.runtime_default(process.DEFAULT_CAPABILITIES)
    assert plain["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = names_allowed(plain)
    assert {"read", "clone", "socket", "chroot"} <= allowed
    assert not {"mount", "unshare", "setns", "bpf", "keyctl", "add_key", "reboot", "userfaultfd", "io_uring_setup"} & allowed
    admin = names_allowed(seccomp.runtime_default(process.DEFAULT_CAPABILITIES | {"CAP_SYS_ADMIN"}))
    assert {"mount", "unshare", "clone3"} <= admin
    sockets = [rule["args"][0] for rule in plain["syscalls"] if rule["names"] == ["socket"]]
    operators = {"SCMP_CMP_LT": int.__lt__, "SCMP_CMP_EQ": int.__eq__, "SCMP_CMP_GT": int.__gt__}
    families = {f for f in range(64) if any(operators[a["op"]](f, a["value"]) for a in sockets)}
    assert families == set(range(64)) - {38, 40}


def test_seccomp_choice(tmp_path: Path) -> None:
    context = cri.LinuxContainerSecurityContext()

    def chosen() -> dict[str, Any] | None:
        return seccomp.select(context, frozenset(), available=True)

    assert chosen() is None
    context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    assert chosen() is not None
    context.seccomp.profile_type = cri.SecurityProfile.Localhost
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}))
    context.seccomp.localhost_ref = str(profile)
    assert chosen() == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    for content in ("not json", "[]", "{}", '{"defaultAction": "SCMP_ACT_ALLOWED"}'):
        profile.write_text(content)
        with pytest.raises(CrispError, match=r"p\.json"):
            chosen()
    context.seccomp.localhost_ref = "relative.json"
    with pytest.raises(CrispError, match="absolute"):
        chosen()
    context.privileged = True
    assert chosen() is None


def test_deprecated_seccomp_path(tmp_path: Path) -> None:
    context = cri.LinuxContainerSecurityContext(seccomp_profile_path="runtime/default")
    assert seccomp.select(context, frozenset(), available=True) is not None
    profile = tmp_path / "p.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    context.seccomp_profile_path = f"localhost/{profile}"
    assert seccomp.select(context, frozenset(), available=True) == {"defaultAction": "SCMP_ACT_ALLOW"}
    context.seccomp_profile_path = "unconfined"
    assert seccomp.select(context, frozenset(), available=True) is None
    context.seccomp_profile_path = "strange"
    with pytest.raises(CrispError, match="strange"):
        seccomp.select(context, frozenset(), available=True)


def test_seccomp_on_a_kernel_without_filters() -> None:
    context = cri.LinuxContainerSecurityContext()
    assert seccomp.select(context, frozenset(), available=False) is None
    context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    with pytest.raises(CrispError, match="no seccomp filters, and the profile RuntimeDefault"):
        seccomp.select(context, frozenset(), available=False)


def test_no_annotation_of_a_pod_is_a_filter() -> None:
    """Whatever the administrator has opened: with a filter of its own a container would go without its profile."""
    asked = {oci_annotations.FILTER: "AAAA", "run.oci.keep_original_groups": "1"}
    assert spec.opened(asked, ["*"]) == {"run.oci.keep_original_groups": "1"}
    assert spec.opened(asked, [oci_annotations.FILTER]) == {}
