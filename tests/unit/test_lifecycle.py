"""Every state against every event."""

from __future__ import annotations

import itertools

import pytest

from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.lifecycle import TRANSITIONS, ContainerState, Event, SandboxState, check
from runtime.records import ContainerRecord, SandboxRecord

ALLOWED = {
    ContainerState.CREATING: {Event.CREATED, Event.REMOVE},
    ContainerState.CREATED: {Event.START, Event.EXIT, Event.LOST, Event.REMOVE},
    ContainerState.RUNNING: {Event.EXIT, Event.LOST},
    ContainerState.EXITED: {Event.REMOVE},
    ContainerState.UNKNOWN: {Event.EXIT, Event.REMOVE},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(ContainerState, Event)))
def test_product(state: ContainerState, event: Event) -> None:
    assert ((state, event) in TRANSITIONS) == (event in ALLOWED[state])
    if event in ALLOWED[state]:
        check(state, event, "x")
    else:
        with pytest.raises(CrispError, match=state.value) as caught:
            check(state, event, "x")
        assert caught.value.code is Code.FAILED_PRECONDITION


def container(**facts: int) -> ContainerRecord:
    return ContainerRecord(
        id="c", sandbox_id="s", config=cri.ContainerConfig(), image_id="i", log_path="/l", created_at=1, **facts
    )


def test_states_are_derived_from_facts() -> None:
    assert container().state is ContainerState.CREATING
    assert container(made_at=2).state is ContainerState.CREATED
    assert container(made_at=2, started_at=3).state is ContainerState.RUNNING
    assert container(made_at=2, started_at=3, finished_at=4).state is ContainerState.EXITED
    assert container(made_at=2, started_at=3, lost_at=4).state is ContainerState.UNKNOWN
    sandbox = SandboxRecord(id="s", config=cri.PodSandboxConfig(), handler="", created_at=1)
    assert sandbox.state is SandboxState.CREATING
    sandbox.ready_at = 2
    assert sandbox.state is SandboxState.READY
    sandbox.stopped_at = 3
    assert sandbox.state is SandboxState.STOPPED


def test_records_survive_json_byte_for_byte() -> None:
    config = cri.ContainerConfig(labels={"a": "ä\u0000b"}, annotations={"k": ' {"x": 1}\n'})
    config.envs.add(key="E", value=b"\xff\xfe")
    record = ContainerRecord("c", "s", config, "i", "/l", 5, exit_code=3, groups=[1, 2])
    again = ContainerRecord.parse(record.document() | {"from_the_future": 1})
    assert again == record
    assert again.config.envs[0].value == b"\xff\xfe"
