"""NRI's default validator: what the node's administrator does not want of the adjustments that plugins make.

    required-plugins.noderesource.dev[/pod | /container.NAME]: [a, b]     annotation of a pod: no container without these
    KEY[/pod | /container.NAME]: "true"                                   with the key that is configured: with less than all

It decides as NRI's own does (plugins/default-validator there); the settings are `[nri.default_validator]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proto import nri_pb2 as nri
from runtime.nri.errors import Refused

if TYPE_CHECKING:
    from runtime.config.nri import ValidatorConfig

REQUIRED: Final = "required-plugins.noderesource.dev"

TRUTHS: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)
"""How the annotation is read: as Go's strconv.ParseBool."""

MAX_SHOWN: Final = 100  # characters of an annotation, in a message


def validate(request: nri.ValidateContainerAdjustmentRequest, settings: ValidatorConfig) -> None:
    """Raises `Refused`, with the plugin and what it has done, for what the settings do not allow."""
    if not settings.enable:
        return
    if request.HasField("adjust"):
        _hooks(request, settings)
        _seccomp(request, settings)
        _namespaces(request, settings)
        _sysctls(request, settings)
    _required_plugins(request, settings)


def annotation(pod: nri.PodSandbox, key: str, container: str) -> str | None:
    """An annotation of the pod as it holds for one of its containers: the container's own goes before the pod's."""
    for place in (f"{key}/container.{container}", f"{key}/pod", key):
        if place in pod.annotations:
            return pod.annotations[place]
    return None


def _owners(request: nri.ValidateContainerAdjustmentRequest) -> nri.FieldOwners:
    known = request.owners.owners
    return known[request.container.id] if request.container.id in known else nri.FieldOwners()


def _refuse(request: nri.ValidateContainerAdjustmentRequest, message: str) -> None:
    raise Refused(f"NRI's default validator refuses the adjustment of container {request.container.name}: {message}")


def _hooks(request: nri.ValidateContainerAdjustmentRequest, settings: ValidatorConfig) -> None:
    if settings.reject_oci_hook_adjustment and (owners := _owners(request).simple.get(nri.OciHooks)):
        _refuse(request, f"{_plugins(owners.split(','))} adds OCI hooks, which nri.default_validator forbids")


def _seccomp(request: nri.ValidateContainerAdjustmentRequest, settings: ValidatorConfig) -> None:
    owner = _owners(request).simple.get(nri.SeccompPolicy)
    if owner is None:
        return
    kinds = {
        nri.SecurityProfile.RUNTIME_DEFAULT: ("the runtime's default", settings.reject_runtime_default_seccomp_adjustment),
        nri.SecurityProfile.UNCONFINED: ("no", settings.reject_unconfined_seccomp_adjustment),
        nri.SecurityProfile.LOCALHOST: ("a custom", settings.reject_custom_seccomp_adjustment),
    }
    linux = request.container.linux
    kind = linux.seccomp_profile.profile_type if linux.HasField("seccomp_profile") else nri.SecurityProfile.UNCONFINED
    name, forbidden = kinds.get(kind, ("an unknown", False))
    if forbidden:
        _refuse(request, f"{_plugins([owner])} sets another seccomp policy, and it has {name} profile")


def _namespaces(request: nri.ValidateContainerAdjustmentRequest, settings: ValidatorConfig) -> None:
    owners = _owners(request).compound.get(nri.Namespace)
    if settings.reject_namespace_adjustment and owners is not None and owners.owners:
        told = ", ".join(f"{plugin} ({kind})" for kind, plugin in sorted(owners.owners.items()))
        _refuse(request, f"namespaces are changed by {told}")


def _sysctls(request: nri.ValidateContainerAdjustmentRequest, settings: ValidatorConfig) -> None:
    if not settings.reject_sysctl_adjustment:
        return
    owners = _owners(request).compound.get(nri.Sysctl)
    found = {owners.owners[key] for key in request.adjust.linux.sysctl if key in owners.owners} if owners is not None else ()
    if found:
        _refuse(request, f"{_plugins(sorted(found))} sets sysctls")


def _required_plugins(request: nri.ValidateContainerAdjustmentRequest, settings: ValidatorConfig) -> None:
    container = request.container.name
    if (key := settings.tolerate_missing_plugins_annotation) and _tolerated(request, key):
        return
    required = [*settings.required_plugins]
    if (text := annotation(request.pod, REQUIRED, container)) is not None:
        required += _names(request, text)
    present = {name for plugin in request.plugins for name in (plugin.name, f"{plugin.index}-{plugin.name}")}
    if missing := [name for name in dict.fromkeys(required) if name not in present]:
        _refuse(request, f"it needs {_plugins(missing)}, not connected now")


def _tolerated(request: nri.ValidateContainerAdjustmentRequest, key: str) -> bool:
    text = annotation(request.pod, key, request.container.name)
    if text is None:
        return False
    if text not in TRUTHS:
        _refuse(request, f"annotation {key} {text[:MAX_SHOWN]!r} is neither true nor false")
    return TRUTHS[text]


def _names(request: nri.ValidateContainerAdjustmentRequest, text: str) -> list[str]:
    """A list of names in YAML, which JSON is too."""
    import yaml  # noqa: PLC0415  loaded only where a pod has the annotation

    try:
        names = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        names = False
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        _refuse(request, f"annotation {REQUIRED} {text[:MAX_SHOWN]!r} is no list of plugins")
    return [str(name) for name in names]


def _plugins(names: list[str]) -> str:
    return f"plugin{'s' if len(names) > 1 else ''} {', '.join(names)}"
