"""Removing directory trees by names that are bytes."""

from __future__ import annotations

import os


def remove_tree(path: bytes) -> None:
    """Removes a directory and everything in it, depth first; what is gone already is no error."""
    stack = [path]
    while stack:
        directory = stack[-1]
        children = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        children.append(entry.path)
                    else:
                        os.unlink(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            stack.pop()
            continue
        if children:
            stack += children
        else:
            os.rmdir(directory)
            stack.pop()
