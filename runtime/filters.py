"""Label selectors of List calls."""

from __future__ import annotations

from collections.abc import Mapping


def labels_match(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether each label of the selector is there with the same value."""
    return all(labels.get(key) == value for key, value in selector.items())
