"""Fuzz targets of what NRI plugins may send: whatever comes in, there are events, never an exception."""

from __future__ import annotations

from collections.abc import Callable

from proto import nri_mux, ttrpc


def fuzz_nri(data: bytes) -> None:
    """Both directions of one connection; the input is cut by its first byte."""
    demultiplexer, caller, callee = nri_mux.Demultiplexer(), ttrpc.Caller(), ttrpc.Callee()
    for _ in range(8):
        caller.call("service", "method", b"payload", 1.0)
    step = (data[0] if data else 0) + 1
    for at in range(1, len(data), step):
        for connection, part in demultiplexer.receive(data[at : at + step]):
            if connection == nri_mux.PLUGIN:
                assert all(reply.stream < 16 for reply in caller.receive(part))
                continue
            for call in callee.receive(part):
                if call.stream % 4 == 1:
                    callee.answer(call.stream, call.payload)
                else:
                    callee.refuse(call.stream, 2, call.method)
            assert callee.unanswered == 0
            callee.refusals()


TARGETS: dict[str, Callable[[bytes], None]] = {"nri": fuzz_nri}
