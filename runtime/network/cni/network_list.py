"""Network configuration lists, CNI specification 1.1 section 1: parsed and checked, before anything is run.

A file `*.conflist` holds a list; `*.conf` and `*.json` may hold a single plugin's configuration, as the specification
had them before 1.0, and become lists of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from proto.errors import invalid

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Of the protocol, in rising order. 0.1 and 0.2 have no chains."""

MAX_FILE_BYTES: Final = 1024 * 1024

# "Must start with an alphanumeric character, optionally followed by any combination of one or more alphanumeric
# characters, underscore, dot (.) or hyphen (-)."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class NetworkList:
    """One network: the plugins that a pod is handed to, in their order."""

    name: str
    version: str
    """Of the protocol with the plugins."""
    versions: tuple[str, ...]
    """What the configuration is written for and crisp speaks, best first."""
    plugins: tuple[dict[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    inlined_only: bool = False

    def at_least(self, version: str) -> bool:
        """Whether the protocol's version is this one or later."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)

    def speaking(self, supported: Sequence[set[str]]) -> Self:
        """The same network in the best version that all its plugins support too. Raises INVALID_ARGUMENT if there is
        none."""
        for version in self.versions:
            if all(version in versions for versions in supported):
                return replace(self, version=version)
        for plugin, versions in zip(self.plugins, supported, strict=True):
            if not versions.intersection(self.versions):
                best = max(versions, key=_number, default="none")
                raise invalid(
                    f"network {self.name}: plugin {plugin['type']} supports protocol versions up to {best}, the "
                    f"configuration asks for {' or '.join(self.versions)}"
                )
        raise invalid(f"network {self.name}: no protocol version of {', '.join(self.versions)} suits all its plugins")

    def with_plugins(self, plugins: Iterable[dict[str, Any]]) -> Self:
        """The same network with more plugins at its end."""
        return replace(self, plugins=(*self.plugins, *plugins))

    def document(self) -> dict[str, Any]:
        """As JSON, for `restore`."""
        return {
            "name": self.name,
            "version": self.version,
            "plugins": list(self.plugins),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
        }

    @classmethod
    def restore(cls, document: dict[str, Any]) -> Self:
        """From `document`."""
        version = document["version"]
        plugins = tuple(document["plugins"])
        return cls(document["name"], version, (version,), plugins, document["disableCheck"], document["disableGC"])


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


NO_PLUGINS: Final = "plugins: missing, or not a list of at least one"


def parse(text: str, *, single: bool, more: bool = False) -> NetworkList:
    """Read a configuration; `single` for one plugin's. With `more`, it may lack plugins, which files in a folder have then.
    Raises INVALID_ARGUMENT saying what is wrong."""
    document = _object(text)
    if more and not single and document.get("plugins", []) == [] and not _flag(document, "loadOnlyInlinedPlugins"):
        document = {**document, "plugins": None}
    if single and "plugins" not in document:
        document = {**document, "plugins": [document]}
    versions = _versions(document)
    return NetworkList(
        name=_name(document),
        version=versions[0],
        versions=versions,
        plugins=tuple(_plugin(plugin) for plugin in _plugins(document)),
        disable_check=_flag(document, "disableCheck"),
        disable_gc=_flag(document, "disableGC"),
        inlined_only=_flag(document, "loadOnlyInlinedPlugins"),
    )


def parse_plugin(text: str) -> dict[str, Any]:
    """Read one plugin's configuration that belongs to a list elsewhere. Raises INVALID_ARGUMENT."""
    return _plugin(_object(text))


def _object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise invalid(f"not JSON: {error}") from None
    except RecursionError:
        raise invalid("not JSON that anybody nests like this") from None
    if not isinstance(document, dict):
        raise invalid("not a JSON object")
    return document


def _name(document: dict[str, Any]) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise invalid("name: missing")
    if not _NAME.fullmatch(name):
        raise invalid(f"name: {name!r} is not made of letters, digits, '_', '.' and '-'")
    return name


def _versions(document: dict[str, Any]) -> tuple[str, ...]:
    asked = [document.get("cniVersion")]
    more = document.get("cniVersions", [])
    if not isinstance(more, list):
        raise invalid("cniVersions: not a list")
    asked += more
    if not isinstance(asked[0], str) and not more:
        raise invalid("cniVersion: missing")
    known = tuple(version for version in reversed(VERSIONS) if version in asked)
    if not known:
        raise invalid(f"cniVersion: {', '.join(str(v) for v in asked if v)} is none of {', '.join(VERSIONS)}")
    return known


def _plugins(document: dict[str, Any]) -> list[Any]:
    plugins = document.get("plugins", [])
    if plugins is None:
        return []
    if not isinstance(plugins, list) or not plugins:
        raise invalid(NO_PLUGINS)
    return plugins


def _plugin(plugin: Any) -> dict[str, Any]:
    """A plugin's configuration as it stands. Raises INVALID_ARGUMENT."""
    if not isinstance(plugin, dict):
        raise invalid("plugins: an entry is not an object")
    kind = plugin.get("type")
    if not isinstance(kind, str) or not kind:
        raise invalid("plugins: an entry lacks its type")
    if "/" in kind or "\0" in kind or kind in (".", ".."):
        raise invalid(f"plugins: type {kind!r} is not the name of a program")
    if not isinstance(plugin.get("capabilities", {}), dict):
        raise invalid(f"plugins: {kind}: capabilities is not an object")
    return plugin


def _flag(document: dict[str, Any], key: str) -> bool:
    """A boolean; the specification had disableCheck as a string once, and there are files that have it so."""
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise invalid(f"{key}: neither true nor false")
    return value
