"""A certificate authority for the tests, by openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path


def authority(directory: Path) -> Path:
    """Makes `ca.crt` and `ca.key`; returns the certificate."""
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", "/CN=test authority", "-keyout", str(directory / "ca.key"), "-out", str(directory / "ca.crt")),
    )
    return directory / "ca.crt"


def certificate(directory: Path, name: str, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate and its key, signed by the authority in the directory."""
    cert, key, request, extensions = (directory / f"{name}.{end}" for end in ("cert", "key", "csr", "ext"))
    _openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)),
    )
    extensions.write_text(f"subjectAltName=IP:{host}\n")
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(directory / "ca.crt"), "-CAkey", str(directory / "ca.key")),
        *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(cert)),
    )
    return cert, key


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
