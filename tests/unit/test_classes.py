"""RDT and block I/O classes: who chooses, and hosts that have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.oci import classes


def test_a_containers_annotation_before_the_pods() -> None:
    annotations = {classes.RDT + "pod": "all", classes.RDT + "container.a": "mine"}
    assert classes.chosen(classes.RDT, annotations, "a") == "mine"
    assert classes.chosen(classes.RDT, annotations, "b") == "all"
    assert classes.chosen(classes.BLOCK_IO, annotations, "a") == ""


def test_rdt(tmp_path: Path) -> None:
    with pytest.raises(CrispError, match="no resctrl file system") as caught:
        classes.rdt("gold", tmp_path)
    assert caught.value.code is Code.FAILED_PRECONDITION
    (tmp_path / "schemata").touch()
    (tmp_path / "gold").mkdir()
    (tmp_path / "gold" / "schemata").touch()
    assert classes.rdt("gold", tmp_path) == {"closID": "gold"}
    for name in ("silver", "..", "../x", "."):
        with pytest.raises(CrispError, match="no control group"):
            classes.rdt(name, tmp_path)


def test_block_io(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(
        "Classes:\n  low:\n  - {Weight: 80}\n  - {Devices: [/dev/none*], ThrottleReadBps: 60M, ThrottleWriteIOPS: 5}\n"
        "  bad:\n  - {Weight: 5}\n  worse:\n  - {ThrottleReadBps: fast}\n"
    )
    assert classes.block_io("low", str(path)) == {
        "weight": 80,
        "throttleReadBpsDevice": [],
        "throttleWriteIOPSDevice": [],
    }
    for name, message in (("none", "is not in"), ("bad", "Weight '5'"), ("worse", "ThrottleReadBps 'fast'")):
        with pytest.raises(CrispError, match=message):
            classes.block_io(name, str(path))
    with pytest.raises(CrispError, match="blockio_config_file is not set"):
        classes.block_io("low", "")


def test_block_io_takes_no_key_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "classes.yaml"
    for text in ("Klasses: {}\nClasses:\n  low: [{Weight: 80}]\n", "Classes:\n  low: [{Weight: 80, Wait: 1}]\n"):
        path.write_text(text)
        with pytest.raises(CrispError, match=r"Klasses|Wait"):
            classes.block_io("low", str(path))
