"""crisp: a Kubernetes CRI runtime.

This module is the only name that an installation adds to site-packages. The rooms (`proto`, `kernel`, `shim`,
`imagesvc`, `runtime`) lie beside it in a checkout and inside it in a wheel; either way they are put at the front of the
path of crisp's own processes here, and nobody else's `import proto` ever meets them.
"""

import gc
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Entry point of the `crisp` command."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    gc.disable()  # until all is loaded: what is loaded stays, and looking for garbage in it takes a fifth of a short command
    from runtime.cli.main import main as cli  # noqa: PLC0415  the path has to be set first

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    cli()


def _end(number: int, _frame: Any) -> None:
    """End as by the signal, but put away what is not to stay, such as half an archive."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
