"""A next version of this tree, for tests of upgrades: what a release changes, in a copy.

    python -m tests.packaging.next_version TARGET

It has another version number, one more migration of the state, and a newer shim protocol with one more field.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "99.1.0"

MIGRATIONS = r"""
def next_tables(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE news(key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute("UPDATE containers SET value = json_set(value, '$.next', 1)")


MIGRATIONS: Final\1 = (\2, next_tables)"""


def make_next(target: Path) -> None:
    """Write the copy to `target`: what is in git, as it lies here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    _change(target / "proto/version.py", r'VERSION = "[^"]+"', f'VERSION = "{VERSION}"')
    _change(target / "runtime/store/migrations.py", r"^MIGRATIONS: Final(.*) = \((.*?),?\)$", MIGRATIONS)
    protocol = target / "proto/shim_protocol.py"
    [number] = re.findall(r"^VERSION = (\d+)$", protocol.read_text(), re.MULTILINE)
    newer = int(number) + 1
    _change(protocol, r"^VERSION = \d+$", f"VERSION = {newer}")
    _change(protocol, r'"signal": \{"signal": Field\(int\)\}', '"signal": {"signal": Field(int), "all": Field(bool, False)}')
    _change(protocol, r"^(SINCE: .* = \{)", rf'\1"signal.all": {newer}, ')
    _change(
        target / "runtime/shims/client.py",
        r'request\("signal", signal=number\)',
        'request("signal", signal=number, all=False)',
    )


def _change(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{path} has {count} times what the next version changes: {pattern}"
    path.write_text(text)


if __name__ == "__main__":
    make_next(Path(sys.argv[1]))
