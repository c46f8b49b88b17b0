"""How long the builtin network takes to connect and disconnect a pod, from the 1st to the 500th.

    python -m tests.bench.network [PODS]            as root; in network namespaces of its own, the host's stays as it is

Prints milliseconds. What is to be seen: connecting stays flat, and disconnecting many at once is batched.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from typing import Final

from runtime.network.builtin import BuiltinNetwork
from runtime.network.config import NetworkConfig
from runtime.network.seam import NetworkRequest, PortMapping
from tests.kernel.netlab import Netns
from tests.kernel.network_lab import MemoryLeases

GROUP: Final = 100


def main() -> None:
    """Measure."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with ExitStack() as stack:
        host = stack.enter_context(Netns())
        pods = [stack.enter_context(Netns()) for _ in range(count)]
        requests = [NetworkRequest(f"{number:064x}"[::-1], pod.path) for number, pod in enumerate(pods)]
        host.run(lambda: asyncio.run(measure(requests)))


async def measure(requests: list[NetworkRequest]) -> None:
    """Connect all, then disconnect them, one by one and eight at once."""
    network = BuiltinNetwork(NetworkConfig(), MemoryLeases())
    await network.start()
    try:
        for start in range(0, len(requests), GROUP):
            times = [await timed(network.attach(request)) for request in requests[start : start + GROUP]]
            report(f"attach {start + 1} to {start + len(times)}", times)
        report("check", [await timed(network.check()) for _ in range(GROUP)])
        ported = NetworkRequest("f" * 64, requests[-1].netns_path, port_mappings=(PortMapping("tcp", 80, 80),))
        await network.detach(requests[-1])
        report("attach with a host port", [await timed(network.attach(ported))])
        report("detach", [await timed(network.detach(request)) for request in requests[:20]])
        gate = asyncio.Semaphore(8)

        async def detach(request: NetworkRequest) -> float:
            async with gate:
                return await timed(network.detach(request))

        begun = time.perf_counter()
        times = await asyncio.gather(*(detach(request) for request in requests[20:-1]))
        report("detach, 8 at once", times)
        print(f"{'  per second':30} {len(times) / (time.perf_counter() - begun):8.0f}")
        await network.destroy()
    finally:
        await network.close()


async def timed(work: object) -> float:
    """Milliseconds that it takes."""
    begun = time.perf_counter()
    await work  # type: ignore[misc]
    return (time.perf_counter() - begun) * 1000


def report(name: str, times: list[float]) -> None:
    """One line of the table."""
    ordered = sorted(times)
    median, late = ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]
    print(f"{name:30} median {median:6.2f}   p95 {late:6.2f}   max {ordered[-1]:6.2f}")


if __name__ == "__main__":
    main()
