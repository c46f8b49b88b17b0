"""What crun agrees on with those who call it, beside the OCI runtime specification (crun(1)).

create   a filter that stands in the annotation takes the place of the one that the `seccomp` rules describe
state    <root>/<id>/seccomp.bpf is the filter that the container's process and its execs get
"""

from __future__ import annotations

from typing import Final

FILTER: Final = "run.oci.seccomp_bpf_data"
"""Annotation: a seccomp filter as the kernel takes it, in base64."""

KEPT_FILTER: Final = "seccomp.bpf"
"""File in the state directory of a container: its filter."""
