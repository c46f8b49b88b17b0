"""What happens to pods and containers, told to the plugins one after the other in the order of their indexes.

The plugins are those that are there when the telling begins. Who closes meanwhile is left out; the first that refuses ends
it with a CrispError, and those after it are not asked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from proto import nri_pb2 as nri
from runtime.nri.errors import Refused
from runtime.nri.merge import CreateResult, StopResult, UpdateResult
from runtime.nri.plugin import SAID_CHARACTERS

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from runtime.nri.plugins import Plugins


async def tell(plugins: Plugins, event: int, request: Message) -> None:
    """An event that asks for nothing."""
    for plugin in plugins.asked(event):
        await plugin.ask(event, request)


async def create(plugins: Plugins, pod: nri.PodSandbox, container: nri.Container) -> CreateResult:
    """Have all plugins look at a container that is to be created; what they want of it, which no validator refuses."""
    result = CreateResult(pod, container)
    present = list(plugins)
    for plugin in present:
        if (reply := await plugin.ask(nri.CREATE_CONTAINER, result.request())) is not None:
            result.add(str(plugin), reply)
    settings = plugins.config.default_validator
    validators = plugins.asked(nri.VALIDATE_CONTAINER_ADJUSTMENT)
    if settings.enable or validators:
        request = result.validation([(plugin.name, plugin.index) for plugin in present if not plugin.closed])
        if settings.enable:
            from runtime.nri import validator  # noqa: PLC0415  it loads YAML

            validator.validate(request, settings)
        await asyncio.gather(*(_validate(one, request) for one in validators))
    return result


async def _validate(plugin: Any, request: nri.ValidateContainerAdjustmentRequest) -> None:
    reply = await plugin.ask(nri.VALIDATE_CONTAINER_ADJUSTMENT, request)
    if reply is None:
        # Not to be asked is not to agree.
        raise Refused(f"NRI plugin {plugin} was to validate the container's adjustments and is gone")
    if reply.reject:
        reason = reply.reason[:SAID_CHARACTERS] or "it gives no reason"
        raise Refused(f"NRI plugin {plugin} rejects the container's adjustments: {reason}")


async def update(
    plugins: Plugins, pod: nri.PodSandbox, container: nri.Container, resources: nri.LinuxResources
) -> UpdateResult:
    """Have all plugins look at an update of a container."""
    result = UpdateResult(container, resources)
    for plugin in plugins.asked(nri.UPDATE_CONTAINER):
        request = nri.UpdateContainerRequest(pod=pod, container=container, linux_resources=result.resources)
        if (reply := await plugin.ask(nri.UPDATE_CONTAINER, request)) is not None:
            result.add(str(plugin), reply)
    return result


async def stop(plugins: Plugins, pod: nri.PodSandbox, container: nri.Container) -> StopResult:
    """Tell that a container has ended; what plugins want changed of others."""
    result = StopResult()
    for plugin in plugins.asked(nri.STOP_CONTAINER):
        if (
            reply := await plugin.ask(nri.STOP_CONTAINER, nri.StopContainerRequest(pod=pod, container=container))
        ) is not None:
            result.add(str(plugin), reply)
    return result
