"""Fuzz targets of what registries, images, plugins and administrators write: understood, or refused with a CrispError."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Callable
from typing import Any

import yaml

from imagesvc.containerfile import ignore
from imagesvc.containerfile.instructions import OnBuild
from imagesvc.containerfile.parser import parse as parse_containerfile
from imagesvc.containerfile.parser import parse_trigger
from imagesvc.containerfile.scopes import Platforms, Scope
from imagesvc.containerfile.stages import Graph
from imagesvc.manifests import Index, parse_config, parse_manifest
from imagesvc.platforms import Platform
from imagesvc.references import parse_reference
from imagesvc.registry import hosts, registries_conf
from imagesvc.registry.auth import parse_challenges, parse_token
from imagesvc.tar.header import TarError
from imagesvc.tar.tar_stream import Data, Entry, TarReader
from proto import shim_protocol
from proto.errors import CrispError
from proto.shim_protocol import Malformed
from runtime.network.cni import network_list, protocol
from runtime.oci import cdi_spec, hooks, restored_spec
from shim import exit_record, user_lookup

DIGEST = "sha256:" + "0" * 64
REFERENCE = parse_reference("registry.example/team/app:v1")
PLATFORMS = Platforms(Platform("linux", "amd64"), Platform("linux", "arm64"))
NETWORK = network_list.parse('{"cniVersion": "1.1.0", "name": "n", "type": "t"}', single=True)


def refused() -> contextlib.suppress:
    """The one exception that a parser may raise."""
    return contextlib.suppress(CrispError)


def document(data: bytes) -> Any:
    """JSON, or None."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def fuzz_shim_frames(data: bytes) -> None:
    """A request that is taken can be sent again; answers and events are objects or nothing."""
    request = shim_protocol.decode_request(data)
    if not isinstance(request, Malformed):
        again = shim_protocol.decode_request(shim_protocol.encode({"op": request.op, "seq": request.seq, **request.fields}))
        assert again == request
    message = shim_protocol.decode(data)
    if message is not None:
        assert shim_protocol.decode(shim_protocol.encode(message)) == message
        error = shim_protocol.error_from(message)
        assert isinstance(error, CrispError)
    exit_record.from_fields(message)


def fuzz_tar(data: bytes) -> None:
    """However the bytes are cut, the events are the same: once whole, once by the first byte's number."""
    step = (data[0] if data else 0) + 1
    assert _tar_events(data[1:], step) == _tar_events(data[1:], len(data) or 1)


def _tar_events(data: bytes, step: int) -> list[Any]:
    reader = TarReader()
    found: list[Any] = []
    stored = bytearray()
    try:
        for at in range(0, len(data), step):
            reader.receive_data(data[at : at + step])
            while (event := reader.next_event()) is not None:
                if isinstance(event, Entry):
                    found.append((event.name, event.type, event.size))
                elif isinstance(event, Data):
                    stored += event.view
        reader.close()
    except TarError as error:
        found.append(str(error))
    return [*found, bytes(stored)] if not found or not isinstance(found[-1], str) else found


def fuzz_references(data: bytes) -> None:
    """What is understood is written in one way, which means the same."""
    with refused():
        parsed = parse_reference(data.decode(errors="replace"))
        assert parse_reference(str(parsed)) == parsed


def fuzz_manifests(data: bytes) -> None:
    """Manifests and indexes."""
    with refused():
        found = parse_manifest(data, DIGEST)
        if not isinstance(found, Index):
            assert all(layer.size >= 0 for layer in found.layers)


def fuzz_image_config(data: bytes) -> None:
    """Configurations of images."""
    with refused():
        parse_config(data, DIGEST)


def fuzz_registry_auth(data: bytes) -> None:
    """Challenges, and the token service's answer."""
    parse_challenges([data.decode("latin-1")])
    with refused():
        parse_token(data, 0.0)


def fuzz_hosts_toml(data: bytes) -> None:
    """hosts.toml, and a registry of registries.conf."""
    try:
        table = tomllib.loads(data.decode(errors="replace"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    with refused():
        hosts.parse(table, REFERENCE, "/nowhere/hosts.toml")
    with refused():
        registries_conf.endpoints(table, "registry.example", REFERENCE, ())


def fuzz_cni(data: bytes) -> None:
    """Results, failures, versions and configuration files of plugins."""
    with refused():
        protocol.addresses(protocol.result(NETWORK, "t", data), "eth0")
    assert isinstance(protocol.failure("n", "t", "ADD", 1, data, b""), CrispError)
    protocol.supported_versions(data)
    for single in (True, False):
        with refused():
            found = network_list.parse(data.decode(errors="replace"), single=single)
            assert network_list.NetworkList.restore(found.document()) == found


def fuzz_node_files(data: bytes) -> None:
    """CDI specifications (YAML) and OCI hooks (JSON)."""
    try:
        specification = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        specification = None
    with refused():
        cdi_spec.parse(specification, "/nowhere/cdi.yaml")
    with refused():
        hooks.parse(document(data), "/nowhere/hook.json")


def fuzz_users(data: bytes) -> None:
    """/etc/passwd and /etc/group of an image, and a user's name."""
    for entry in (*user_lookup.parse_passwd(data), *user_lookup.parse_group(data)):
        assert entry.name
        assert entry.number >= 0
    with refused():
        user_lookup.parse_id(data.decode(errors="replace"), "user")


def fuzz_checkpoints(data: bytes) -> None:
    """The specification in a checkpoint archive; the archive itself is a tar."""
    with refused():
        restored_spec.parse(document(data))


def fuzz_containerfile(data: bytes) -> None:
    """What is read has stages whose instructions can be expanded, or are refused; its stages are in an order."""
    with refused():
        found = parse_containerfile(data, "F")
        scope = Scope.of_globals(found, {"given": "1"}, PLATFORMS)
        for stage in found.stages:
            inside = scope.for_stage(("PATH=/bin",))
            for step in stage.instructions:
                with refused():
                    inside.enter(step)
                if isinstance(step, OnBuild) and step.escape == "\\":
                    assert parse_trigger(step.trigger, step.at).keyword
        graph = Graph(found, [scope.expand(stage.base) for stage in found.stages])
        assert graph.needed(graph.find())[-1] == len(found.stages) - 1


def fuzz_ignore_files(data: bytes) -> None:
    """What is below an ignored directory is ignored, or the rules have said that it may be there."""
    with refused():
        rules = ignore.parse(data.decode(errors="replace"), "i")
        if not rules.ignores("src/a.b/c"):
            assert all(not rules.ignores(above) or rules.exempts_below(above) for above in ("src", "src/a.b"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "shim-frames": fuzz_shim_frames,
    "tar": fuzz_tar,
    "references": fuzz_references,
    "manifests": fuzz_manifests,
    "image-config": fuzz_image_config,
    "registry-auth": fuzz_registry_auth,
    "hosts-toml": fuzz_hosts_toml,
    "cni": fuzz_cni,
    "node-files": fuzz_node_files,
    "users": fuzz_users,
    "checkpoints": fuzz_checkpoints,
    "containerfile": fuzz_containerfile,
    "ignore-files": fuzz_ignore_files,
}
