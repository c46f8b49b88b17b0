"""Regenerates the stubs of the .proto files: `python -m proto.generate`; with `--check` it says whether they are stale.

The stubs are committed so that an installation needs no compiler; `make stubs` runs this, a test runs the check.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("api", "admin")
STUBS = tuple(f"{name}_{suffix}" for name in SOURCES for suffix in ("pb2.py", "pb2.pyi", "pb2_grpc.py"))


def generate(target: Path) -> None:
    """Write all stubs to `target`/proto."""
    from grpc_tools import protoc  # noqa: PLC0415  a development dependency

    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        *(str(ROOT / "proto" / f"{name}.proto") for name in SOURCES),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed, see above")


def stale() -> list[str]:
    """Names of the committed stubs that differ from what the .proto files generate."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory)
        generate(target)
        return [
            name
            for name in STUBS
            if not (ROOT / "proto" / name).exists()
            or (target / "proto" / name).read_bytes() != (ROOT / "proto" / name).read_bytes()
        ]


def main() -> None:
    """Command line."""
    if "--check" in sys.argv[1:]:
        if names := stale():
            raise SystemExit(f"stale: {', '.join(names)}; run `make stubs`")
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
