"""Which tests are likely to notice a change of a module: first those that import it, then those of its room."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

LEFT_OUT = (
    "tests/unit/test_tidy.py",
    "tests/unit/test_stubs.py",
    "tests/unit/test_conditions.py",
    "tests/api/test_testcluster.py",
)
"""What looks at the tree or the tests rather than at what the code does, or takes minutes."""

PULLS = ("images/test_transfer.py", "images/test_hostile_registry.py", "images/test_pull.py", "images/test_faults.py")
CHECKPOINTS = ("api/test_checkpoint.py", "api/test_restore.py")
STREAMS = ("api/test_streaming.py", "api/test_exec_and_logs.py")
CNI = ("kernel/test_network_cni.py", "kernel/test_network_cni_failures.py", "kernel/test_network_auto.py")
BUILTIN = ("kernel/test_network_builtin.py", "kernel/test_network_bridge.py", "api/test_network.py")
CONTAINERS = ("api/test_refusals.py", "api/test_containers.py", "api/test_pods.py", "api/test_operations.py")
SHIMS = ("kernel/test_shim.py", "kernel/test_shim_beginnings.py")

ROOMS: dict[str, tuple[str, ...]] = {
    "kernel": ("kernel/test_trees.py", "kernel/test_removal.py", "kernel/test_cgroup_trees.py", *SHIMS, "api/test_stats.py"),
    "kernel/sockets": ("kernel/test_sockets.py", "kernel/test_streaming_vanished.py", "api/test_streaming.py"),
    "kernel/net_counters": ("api/test_stats.py",),
    "kernel/trees": ("kernel/test_trees.py", "kernel/test_removal.py", *PULLS, "images/test_unpack_property.py"),
    "kernel/removal": ("kernel/test_trees.py", "kernel/test_removal.py", *PULLS, "images/test_unpack_property.py"),
    "kernel/project_quota": ("kernel/test_project_quota.py", "faults/test_disk.py"),
    "kernel/syscalls": (*SHIMS, "kernel/test_trees.py", "api/test_user_namespaces.py", "api/test_mounts.py"),
    "kernel/failpoints": ("faults/test_failpoints.py",),
    "shim": (*SHIMS, "kernel/test_sandbox_jobs.py", *CONTAINERS, "api/test_exec_and_logs.py"),
    "shim/attach": ("kernel/test_shim.py", *STREAMS),
    "shim/container": (*SHIMS, *CHECKPOINTS, "faults/test_hanging_beginnings.py"),
    "shim/log_repair": ("kernel/test_shim.py", "faults/test_disk.py"),
    "shim/oci_runtime": (*SHIMS, *CONTAINERS, "faults/test_hanging_beginnings.py", "faults/test_hosts.py"),
    "shim/runtime_probe": ("faults/test_hosts.py", "api/test_user_namespaces.py", "api/test_node.py"),
    "shim/idmapped_volumes": ("api/test_user_namespaces.py",),
    "shim/image_volumes": ("api/test_mounts.py", "api/test_images.py", "api/test_user_namespaces.py"),
    "shim/relabel": ("api/test_mounts.py", "api/test_security_context.py"),
    "imagesvc": (*PULLS, "api/test_images.py", "images/test_registry_access.py"),
    "imagesvc/build": ("images/test_transfer.py", "api/test_images.py", "faults/test_image_failpoints.py"),
    "imagesvc/registry": ("images/test_registry_access.py", "images/test_peoples_registries.py", *PULLS),
    "imagesvc/worker": (*PULLS, "images/test_unpack_property.py", "images/test_pull_isolation.py"),
    "imagesvc/worker/checkpoint_files": (*CHECKPOINTS,),
    "imagesvc/store": (*PULLS, "api/test_images.py", "images/test_kill.py", "faults/test_image_failpoints.py"),
    "imagesvc/transfer": (*PULLS, "images/test_proofs.py", "images/test_pull_isolation.py", "images/test_kill.py"),
    "imagesvc/tar": (*PULLS, "images/test_unpack_property.py"),
    "runtime": (*CONTAINERS, "api/test_node.py", "faults/test_failpoints.py"),
    "runtime/daemon": (*CONTAINERS, "api/test_daemon_security.py", "faults/test_hosts.py", "faults/test_two_daemons.py"),
    "runtime/uninstall": ("packaging/test_uninstall.py",),
    "runtime/network": (*BUILTIN, *CNI, "faults/test_hosts.py"),
    "runtime/network/cni": (*CNI, "kernel/test_network_netns.py", "faults/test_cni_leaks.py", "packaging/test_uninstall.py"),
    "runtime/network/auto": (*CNI,),
    "runtime/network/cluster": (*CNI,),
    "runtime/streaming": (*STREAMS, "kernel/test_streaming_vanished.py"),
    "runtime/config": ("api/test_daemon_security.py", "api/test_node.py", "api/test_operations.py"),
    "runtime/store": ("api/test_operations.py", "faults/test_database.py", "faults/test_failpoints.py"),
    "runtime/shims": (*SHIMS, "kernel/test_sandbox_jobs.py", *CONTAINERS, "faults/test_stuck.py", "faults/test_victims.py"),
    "runtime/host": ("api/test_node.py", "faults/test_hosts.py", "faults/test_two_daemons.py", *CONTAINERS),
    "runtime/oci": (
        *CONTAINERS,
        "api/test_security_context.py",
        "api/test_mounts.py",
        "api/test_node_files.py",
        "api/test_resources.py",
    ),
    "runtime/oci/devices": ("api/test_containers.py", "api/test_node_files.py", "api/test_security_context.py"),
    "runtime/oci/restored_spec": (*CHECKPOINTS,),
    "runtime/oci/resources": ("api/test_resources.py", "api/test_update.py", "api/test_containers.py"),
    "runtime/oci/user_namespaces": ("api/test_user_namespaces.py",),
    "runtime/oci/hooks": ("api/test_node_files.py",),
    "runtime/pods": (*CONTAINERS, "api/test_exec_and_logs.py", "faults/test_failpoints.py", "faults/test_victims.py"),
    "runtime/pods/container_update": ("api/test_update.py", "api/test_resources.py"),
    "runtime/pods/scope_limits": ("api/test_update.py", "api/test_resources.py"),
    "runtime/pods/container_spec": (
        *CONTAINERS,
        "api/test_mounts.py",
        "api/test_security_context.py",
        "api/test_node_files.py",
    ),
    "runtime/pods/container_stop": (
        *CONTAINERS,
        "faults/test_stuck.py",
        "faults/test_hanging_beginnings.py",
        "faults/test_victims.py",
    ),
    "runtime/pods/restore": (*CHECKPOINTS,),
    "runtime/pods/criu": (*CHECKPOINTS,),
    "runtime/pods/criu_images": (*CHECKPOINTS,),
    "runtime/pods/image_volumes": ("api/test_mounts.py", "api/test_images.py"),
    "runtime/pods/events": ("api/test_event_stream.py", "api/test_operations.py"),
    "runtime/pods/target_process": ("api/test_containers.py", "api/test_pods.py"),
    "runtime/checkpoints": (*CHECKPOINTS,),
    "runtime/statistics": ("api/test_stats.py", "api/test_metrics.py"),
    "runtime/api/rpc_images": ("api/test_refusals.py", "api/test_images.py"),
    "runtime/api": (*CONTAINERS, "api/test_images.py", "api/test_node.py", "api/test_streaming.py", "api/test_stats.py"),
    "runtime/api/stream_sources": (*STREAMS, "api/test_network.py"),
    "runtime/telemetry": ("api/test_metrics.py", "api/test_operations.py", "api/test_daemon_security.py"),
    "runtime/recovery": (
        "api/test_operations.py",
        "api/test_containers.py",
        "faults/test_failpoints.py",
        "faults/test_database.py",
    ),
    "runtime/reload": ("api/test_operations.py", "api/test_node.py"),
    "runtime/cli": ("api/test_operations.py", "api/test_streaming.py", "api/test_images.py", "api/test_support_bundle.py"),
    "runtime/cli/support_bundle": ("api/test_support_bundle.py",),
    "runtime/cli/uninstall": ("packaging/test_uninstall.py",),
}
"""Test files below tests/ by the longest beginning of a module's path, in the order in which they are tried."""


def near(root: Path, file: str) -> list[str]:
    """Unit tests that import the module themselves, and what others are named like it."""
    direct = [test for test, modules in _tests(root).items() if _module(file) in modules]
    named = [test for test in _tests(root) if Path(test).stem == f"test_{Path(file).stem}"]
    units = [test for test in dict.fromkeys([*named, *direct]) if test.startswith("tests/unit/")]
    return [test for test in units if test not in LEFT_OUT]


def wide(root: Path, file: str) -> list[str]:
    """Unit tests that reach the module by way of another, those of its room, and whoever else imports it."""
    module = _module(file)
    between = {name for name, modules in _product(root).items() if module in modules}
    tests = _tests(root)
    reached = [test for test, modules in tests.items() if test.startswith("tests/unit/") and modules & between]
    path = file.removesuffix(".py")
    room = max((name for name in ROOMS if path == name or path.startswith(name + "/")), key=len, default="runtime")
    others = [test for test, modules in tests.items() if module in modules]
    found = dict.fromkeys([*reached, *(f"tests/{name}" for name in ROOMS[room]), *others])
    taken = {*LEFT_OUT, *near(root, file)}
    return [test for test in found if test not in taken]


def _module(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


@cache
def _tests(root: Path) -> dict[str, set[str]]:
    return {str(path.relative_to(root)): _imports(path) for path in sorted(root.glob("tests/**/test_*.py"))}


@cache
def _product(root: Path) -> dict[str, set[str]]:
    floors = ("shim", "imagesvc", "runtime", "kernel")
    paths = [path for floor in floors for path in sorted((root / floor).rglob("*.py"))]
    return {_module(str(path.relative_to(root))): _imports(path) for path in paths}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
