"""Man pages and completion scripts, from the same source as --help.

python manifests/command_pages.py TARGET        writes TARGET/man/*.1 and TARGET/completions/crisp.{bash,zsh,fish}
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click
from click_man.core import write_man_pages

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proto.version import VERSION  # noqa: E402  the rooms are found from here on
from runtime.cli import completion  # noqa: E402
from runtime.cli.main import COMMANDS, load  # noqa: E402
from runtime.cli.main import main as crisp  # noqa: E402


def main() -> None:
    """Write everything."""
    target = Path(sys.argv[1])
    (target / "man").mkdir(parents=True, exist_ok=True)
    (target / "completions").mkdir(exist_ok=True)
    for name in COMMANDS:  # whoever writes the pages looks at those that are there
        crisp.add_command(load(name), name)
    _name_in_full(crisp)
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    write_man_pages("crisp", crisp, version=VERSION, target_dir=str(target / "man"), date=date)
    for shell in ("bash", "zsh", "fish"):
        (target / "completions" / f"crisp.{shell}").write_text(completion.script(crisp, shell) + "\n")


def _name_in_full(command: click.Command) -> None:
    """The line under NAME is the first one of the help, and not cut as in a list of commands."""
    command.short_help = (command.help or "").partition("\n")[0].rstrip(".")
    for each in getattr(command, "commands", {}).values():
        _name_in_full(each)


if __name__ == "__main__":
    main()
