"""runtime/oci/seccomp_programs.py: which filter a container is given, and that none is given where that could be wrong."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from proto import oci_annotations
from proto.errors import CrispError
from runtime.config.settings import HandlerConfig
from runtime.host.handlers import Features, Handler
from runtime.oci import seccomp_programs
from runtime.oci.seccomp_programs import Programs, Use

RULES: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
}
FILTER = bytes(range(16))


def spec(rules: dict[str, Any] = RULES, **fields: Any) -> dict[str, Any]:
    return {"linux": {"seccomp": rules}, "annotations": {}, **fields}


class Lab:
    """A runtime whose state directory holds what it would keep of its filters."""

    def __init__(self, directory: Path) -> None:
        (directory / "state").mkdir()
        (directory / "crun").write_text("a program")
        features = Features("1", recursive_read_only=True, program="crun")
        self.handler = Handler(
            "crun", str(directory / "crun"), str(directory / "state"), HandlerConfig(), features, False, False
        )
        self.programs = Programs()
        self.probed = 0
        self.problem = ""

    async def probe(self, _handler: Handler) -> str:
        self.probed += 1
        return self.problem

    async def create(self, document: dict[str, Any], keeps: bytes | None = FILTER, pid: int = os.getpid()) -> Use:
        """A container's creation, in which the runtime keeps this filter; None: it keeps none. `pid` is that of its init."""
        use = self.programs.use(document, self.handler)
        state = Path(self.handler.root) / "c"
        state.mkdir(exist_ok=True)
        place = state / oci_annotations.KEPT_FILTER
        place.unlink(missing_ok=True)
        if keeps is not None:
            place.write_bytes(keeps)
        self.programs.settle(use, self.handler, "c", pid)
        self.programs.consider(use, self.handler, self.probe)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return use

    async def ready(self, document: dict[str, Any]) -> Use:
        """The use once the filter is known and the runtime is found to obey."""
        for _ in range(2):
            await self.create(document)
        return await self.create(document)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_the_third_container_is_given_what_the_first_was_built(lab: Lab) -> None:
    async def life() -> None:
        assert (await lab.create(spec())).program == b""
        assert lab.probed == 0, "a profile of one container costs no probe"
        assert (await lab.create(spec(), b"another..")).program == b"", "and the second is built too"
        assert lab.probed == 1
        use = await lab.create(spec())
        assert use.program == FILTER
        annotated = seccomp_programs.annotated(spec(), use)
        assert base64.b64decode(annotated["annotations"][oci_annotations.FILTER]) == FILTER
        assert annotated["linux"]["seccomp"] == RULES, "the rules stay beside it"
        await lab.create(spec({**RULES, "defaultErrnoRet": 1}))
        assert lab.probed == 1

    asyncio.run(life())


def test_a_runtime_that_does_not_obey_is_given_none(lab: Lab) -> None:
    async def life() -> None:
        lab.problem = "it does not"
        assert (await lab.ready(spec())).program == b""
        assert lab.probed == 1, "it is asked once"

    asyncio.run(life())


def test_a_probe_that_failed_is_made_again_later(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        lab.problem = "the host is busy"
        await lab.ready(spec())
        lab.problem = ""
        assert (await lab.ready(spec())).program == b""
        assert lab.probed == 1, "not at once"
        monkeypatch.setattr(seccomp_programs, "AGAIN", -1.0)
        await lab.create(spec())
        assert lab.probed == 2
        assert (await lab.create(spec())).program == FILTER
        with pytest.raises(CrispError):
            await lab.create(spec(), b"another..")
        await lab.ready(spec())
        assert lab.probed == 2, "one that has not obeyed is not believed again"

    asyncio.run(life())


@pytest.mark.parametrize(
    "document",
    [
        spec({**RULES, "defaultErrnoRet": 38}),
        spec({**RULES, "architectures": ["SCMP_ARCH_X86"]}),
        spec({**RULES, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}]}),
    ],
)
def test_other_rules_have_another_filter(lab: Lab, document: dict[str, Any]) -> None:
    async def life() -> None:
        await lab.ready(spec())
        assert lab.programs.use(document, lab.handler).program == b""
        assert lab.programs.use(spec(), lab.handler).program == FILTER

    asyncio.run(life())


@pytest.mark.parametrize(
    "document",
    [
        spec({**RULES, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}),
        spec({**RULES, "listenerPath": "/run/listener"}),
        spec({**RULES, "defaultAction": "SCMP_ACT_NOTIFY"}),
        spec({**RULES, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}),
        spec(hooks={"createRuntime": [{"path": "/bin/true"}]}),
        spec(annotations={"run.oci.seccomp_fail_unknown_syscall": "1"}),
        spec(annotations={oci_annotations.FILTER: "AAAA"}),
        {"linux": {}, "annotations": {}},
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_the_runtime(lab: Lab, document: dict[str, Any]) -> None:
    async def life() -> None:
        use = await lab.ready(document)
        assert use == Use()
        assert seccomp_programs.annotated(document, use) == document

    asyncio.run(life())


def test_a_runtime_that_is_replaced_builds_anew(lab: Lab) -> None:
    async def life() -> None:
        await lab.ready(spec())
        Path(lab.handler.path).write_text("another program")
        assert lab.programs.use(spec(), lab.handler).program == b""

    asyncio.run(life())


def test_a_filter_is_built_anew_after_a_while(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        await lab.ready(spec())
        monkeypatch.setattr(seccomp_programs, "MAX_AGE", -1.0)
        assert lab.programs.use(spec(), lab.handler).program == b""

    asyncio.run(life())


@pytest.mark.parametrize("kept", [b"another filter..", b"", None], ids=["another", "empty", "none"])
def test_a_create_that_does_not_take_its_filter_fails(lab: Lab, kept: bytes | None) -> None:
    async def life() -> None:
        await lab.ready(spec())
        with pytest.raises(CrispError, match="did not take the seccomp filter"):
            await lab.create(spec(), kept)
        assert (await lab.ready(spec())).program == b"", "and none is given again"

    asyncio.run(life())


def test_a_container_that_was_killed_meanwhile_keeps_nothing(lab: Lab) -> None:
    """Its state goes file by file: the directory can be there without the filter."""

    async def life() -> None:
        await lab.ready(spec())
        killed = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(killed, 0)
        assert (await lab.create(spec(), None, killed)).program == FILTER
        assert (await lab.create(spec())).program == FILTER, "and the runtime is trusted as before"

    asyncio.run(life())


@pytest.mark.parametrize("program", ["", "runc"], ids=["script", "runc"])
def test_what_is_not_crun_itself_builds_each_filter(lab: Lab, program: str) -> None:
    """What a script around crun makes of one container's rules need not be what it makes of another's."""
    lab.handler = dataclasses.replace(lab.handler, features=Features("1", recursive_read_only=True, program=program))

    async def life() -> None:
        assert await lab.ready(spec()) == Use()

    asyncio.run(life())


@pytest.mark.parametrize("kept", [b"", b"1234567", b"x" * (seccomp_programs.MAX_BYTES + 8)], ids=["empty", "odd", "long"])
def test_what_is_no_filter_is_not_kept(lab: Lab, kept: bytes) -> None:
    async def life() -> None:
        await lab.create(spec(), kept)
        await lab.create(spec(), kept)
        assert lab.probed == 0

    asyncio.run(life())


def test_a_bounded_number_is_kept(lab: Lab) -> None:
    async def life() -> None:
        await lab.ready(spec())
        for number in range(seccomp_programs.MAX_KNOWN):
            await lab.create(spec({**RULES, "defaultErrnoRet": number}))
        assert lab.programs.use(spec(), lab.handler).program == b"", "the oldest has gone"

    asyncio.run(life())
