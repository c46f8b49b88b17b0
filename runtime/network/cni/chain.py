"""The operations of the specification (section 3, "Execution of Network Configurations") on a whole list of plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proto.errors import CrispError
from runtime.network.cni import protocol
from runtime.network.cni.network_list import NetworkList
from runtime.network.cni.plugins import Plugins
from runtime.network.cni.protocol import Target


async def add(
    plugins: Plugins, network: NetworkList, target: Target, capabilities: Mapping[str, Any], held: tuple[int, ...]
) -> dict[str, Any]:
    """ADD: in order, "prevResult" of each being the result of the one before. The last one's result.

    `held` descriptors stay open in the plugins and in whatever they start.
    """
    result: dict[str, Any] | None = None
    for plugin in network.plugins:
        output = await plugins.call("ADD", network, plugin, target, held=held, capabilities=capabilities, previous=result)
        result = protocol.result(network, str(plugin["type"]), output)
    assert result is not None
    return result


async def delete(
    plugins: Plugins,
    network: NetworkList,
    target: Target,
    capabilities: Mapping[str, Any],
    result: Mapping[str, Any] | None,
) -> None:
    """DEL: in reverse order. "When an error occurs the runtime MUST stop execution of the list"; it is repeated later.

    From 0.4.0 on each plugin is shown the result of ADD, if there was one.
    """
    shown = result if network.at_least("0.4.0") else None
    for plugin in reversed(network.plugins):
        await plugins.call("DEL", network, plugin, target, capabilities=capabilities, previous=shown)


async def check(
    plugins: Plugins, network: NetworkList, target: Target, capabilities: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """CHECK: in order, until one finds fault. Nothing is done for versions that lack it, or where it is disabled."""
    if network.disable_check or not network.at_least("0.4.0"):
        return
    for plugin in network.plugins:
        await plugins.call("CHECK", network, plugin, target, capabilities=capabilities, previous=result)


async def status(plugins: Plugins, network: NetworkList) -> None:
    """STATUS: raises what the first plugin says that is not ready. Nothing is asked in versions before 1.1.0."""
    if not network.at_least("1.1.0"):
        return
    for plugin in network.plugins:
        await plugins.call("STATUS", network, plugin, None)


async def collect_garbage(plugins: Plugins, network: NetworkList, attachments: Sequence[tuple[str, str]]) -> list[str]:
    """GC: every plugin, whatever the others say; their complaints. Nothing is done before 1.1.0, or where disabled."""
    if network.disable_gc or not network.at_least("1.1.0"):
        return []
    complaints = []
    for plugin in network.plugins:
        try:
            await plugins.call("GC", network, plugin, None, attachments=attachments)
        except CrispError as error:
            complaints.append(error.message)
    return complaints
