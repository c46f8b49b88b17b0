"""Regenerates the stubs of the .proto files: `python -m proto.generate`; with `--check` it says whether they are stale.

The stubs are committed so that an installation needs no compiler; `make stubs` runs this, a test runs the check.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVED = ("api", "admin")
"""Those whose services are gRPC."""
SOURCES = (*SERVED, "cadvisor", "nri", "ttrpc_messages")
STUBS = (
    *(f"{name}_{suffix}" for name in SOURCES for suffix in ("pb2.py", "pb2.pyi")),
    *(f"{name}_pb2_grpc.py" for name in SERVED),
)


def generate(target: Path) -> None:
    """Write all stubs to `target`/proto."""
    from grpc_tools import protoc  # noqa: PLC0415  a development dependency

    outputs = [([f"--python_out={target}", f"--pyi_out={target}"], SOURCES), ([f"--grpc_python_out={target}"], SERVED)]
    for options, names in outputs:
        files = [str(ROOT / "proto" / f"{name}.proto") for name in names]
        if protoc.main(["protoc", f"--proto_path={ROOT}", *options, *files]) != 0:
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
