"""What a plugin that is built with NRI's own stub (Go, v0.12.1) has sent over its socket, whole and byte by byte.

It was asked: Configure, Synchronize, RunPodSandbox, a method that it has not, CreateContainer with a message of 9 KB.
"""

from __future__ import annotations

import pytest

from proto import nri_mux, ttrpc
from proto import nri_pb2 as nri

REGISTER = bytes.fromhex(
    "00000002000000570000004d0000000101000a1c6e72692e706b672e6170692e7631616c706861312e52756e74696d65120e5265676973746572"
    "506c7567696e1a170a087265636f72646564120230371a0776302e31322e31209fb5fecf12"
)
ANSWERS = bytes.fromhex(
    "000000010000000f00000005000000010200120310ff0f"  # Configure
    "000000010000000a00000000000000030200"  # Synchronize
    "000000010000000a00000000000000050200"  # RunPodSandbox
    "000000010000001b000000110000000702000a0f080c120b6d6574686f642053696e67"
    "000000010000000e0000000400000009020012020a00"  # CreateContainer
)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_real_stub(step: int) -> None:
    demultiplexer, caller, callee = nri_mux.Demultiplexer(), ttrpc.Caller(), ttrpc.Callee()
    for method in ("Configure", "Synchronize", "RunPodSandbox", "Sing", "CreateContainer"):
        caller.call("nri.pkg.api.v1alpha1.Plugin", method, b"")
    calls: list[ttrpc.Call] = []
    replies: list[ttrpc.Reply] = []
    data = REGISTER + ANSWERS
    for at in range(0, len(data), step):
        for connection, part in demultiplexer.receive(data[at : at + step]):
            if connection == nri_mux.PLUGIN:
                replies += caller.receive(part)
            else:
                calls += callee.receive(part)
    assert (demultiplexer.failure, caller.failure, callee.failure) == ("", "", "")
    [call] = calls
    assert (call.stream, call.service, call.method) == (1, "nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin")
    assert 4.9 < call.timeout < 5
    request = nri.RegisterPluginRequest.FromString(call.payload)
    assert (request.plugin_name, request.plugin_idx, request.NRI_version) == ("recorded", "07", "v0.12.1")
    configured, synchronized, ran, unknown, created = replies
    assert nri.ConfigureResponse.FromString(configured.payload).events == 0x7FF
    assert nri.SynchronizeResponse.FromString(synchronized.payload) == nri.SynchronizeResponse()
    assert (ran.code, created.code) == (ttrpc.OK, ttrpc.OK)
    assert nri.CreateContainerResponse.FromString(created.payload).HasField("adjust")
    assert (unknown.code, unknown.message) == (ttrpc.UNIMPLEMENTED, "method Sing")
