"""The files in manifests/ agree with the code: keys, names, metrics, commands."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import yaml

from runtime.config.nri import NriConfig
from runtime.config.settings import load
from runtime.network.cni.network_list import parse
from runtime.nri.plugins import Plugins
from runtime.telemetry.prometheus import Telemetry
from tests.harness.daemon import ROOT

MANIFESTS = ROOT / "manifests"
SOCKET = "unix:///run/crisp/crisp.sock"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def metric_names() -> set[str]:
    """What the daemon's endpoint has."""
    node = SimpleNamespace(
        containers={},
        sandboxes={},
        fork_server=SimpleNamespace(alive=True),
        images=SimpleNamespace(list=lambda _: [], running_pulls=list),
        recovery_seconds=0.1,
        lost_containers=0,
        store=SimpleNamespace(failure=""),
        events=SimpleNamespace(dropped=0),
        plugins=Plugins(NriConfig()),
    )
    telemetry = Telemetry(cast("Any", node))
    telemetry.observe(cast("Any", SimpleNamespace(method="PullImage", seconds=1.0, streaming=False)), "INTERNAL")
    telemetry.observe(cast("Any", SimpleNamespace(method="RunPodSandbox", seconds=1.0, streaming=False)), "INTERNAL")
    found = set()
    for family in telemetry._registry.collect():
        found |= {sample.name for sample in family.samples}
    return found


def asked_for(expression: str) -> set[str]:
    return set(re.findall(r"\b((?:crisp|process)_[a-z_]+)\b", re.sub(r"\{[^}]*\}", "", expression)))


def test_alerts_ask_for_metrics_that_there_are() -> None:
    (alerts,) = documents("prometheus/alerts.yaml")
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert set.union(*(asked_for(rule["expr"]) for rule in rules)) <= metric_names()
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])


def test_every_alert_has_its_paragraph_in_the_guide() -> None:
    (alerts,) = documents("prometheus/alerts.yaml")
    guide = (ROOT / "docs" / "operating.md").read_text()
    assert [r["alert"] for g in alerts["groups"] for r in g["rules"] if f"**{r['alert']}**" not in guide] == []


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((MANIFESTS / "grafana" / "crisp-dashboard.json").read_text())
    shown = set.union(*(asked_for(t["expr"]) for panel in dashboard["panels"] for t in panel["targets"]))
    assert shown <= metric_names()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_scrape_job_has_the_name_that_the_alerts_use() -> None:
    (scrape,) = documents("prometheus/scrape.yaml")
    assert [job["job_name"] for job in scrape["scrape_configs"]] == ["crisp"]
    assert all((MANIFESTS / "prometheus" / name).exists() for name in scrape["rule_files"])


def test_kubernetes_files_name_the_socket_and_the_handlers() -> None:
    (kubelet,) = documents("kubelet-config.yaml")
    assert kubelet["kind"] == "KubeletConfiguration"
    assert (kubelet["containerRuntimeEndpoint"], kubelet["imageServiceEndpoint"]) == (SOCKET, SOCKET)
    assert [d["nodeRegistration"]["criSocket"] for d in documents("kubeadm-config.yaml")] == [SOCKET]
    (crictl,) = documents("crictl.yaml")
    assert (crictl["runtime-endpoint"], crictl["image-endpoint"]) == (SOCKET, SOCKET)
    classes = documents("runtimeclasses.yaml")
    assert {c["kind"] for c in classes} == {"RuntimeClass"}
    assert {c["handler"] for c in classes} == {"crun", "runc"}


def test_the_cni_sample_is_one_that_crisp_takes() -> None:
    network = parse((MANIFESTS / "cni-sample.conflist").read_text(), single=False)
    assert [plugin["type"] for plugin in network.plugins] == ["bridge", "portmap", "bandwidth"]


def test_the_unit_runs_a_command_that_there_is() -> None:
    unit = (MANIFESTS / "crisp.service").read_text()
    assert "ExecStart=/usr/bin/crisp serve\n" in unit
    for setting in ("Type=notify", "KillMode=process", "Delegate=yes", "OOMScoreAdjust=-999"):
        assert f"\n{setting}\n" in unit


# --- kind ------------------------------------------------------------------------------------------------------------


def test_the_kind_image_is_made_of_files_that_there_are() -> None:
    text = (MANIFESTS / "kind" / "Containerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.M) if "--from" not in line for word in line.split()[:-1]]
    files = [word for word in copied if not word.startswith("--") and word != "."]
    assert files
    assert all((ROOT / name).is_file() for name in files)
    target = re.search(r"RUN make -C /src (\S+)", text)
    assert target is not None
    assert f"\n{target[1]}:" in (ROOT / "Makefile").read_text()


def test_the_kind_configuration_is_valid() -> None:
    config = load(MANIFESTS / "kind" / "crisp.toml")
    assert config.socket == Path("/run/containerd/containerd.sock")
    assert set(config.runtimes) == {"runc", "test-handler"}


def test_kind_finds_the_snapshotter() -> None:
    """As kind's getSnapshotter does."""
    answer = subprocess.run(
        [MANIFESTS / "kind" / "containerd", "config", "dump"], capture_output=True, text=True, check=True
    )
    document = tomllib.loads(answer.stdout)
    assert document["version"] == 2
    assert document["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "overlayfs"
