"""AppArmor: which profile a container gets, and the profile that RuntimeDefault means.

RuntimeDefault keeps a container off the kernel's knobs that namespaces do not cover; what a process may do with its own
files, network and capabilities is left to the other mechanisms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid
from runtime.oci.resources import withheld

if TYPE_CHECKING:
    from runtime.host.host import Host

DEFAULT_NAME: Final = "crisp-default"

DEFAULT_TEXT: Final = f"""\
profile {DEFAULT_NAME} flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  unix,
  deny mount,
  deny pivot_root,

  # The daemon, the shims and the OCI runtimes signal containers; a container signals itself alone.
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
  signal (receive) peer=runc,
  signal (send,receive) peer={DEFAULT_NAME},
  ptrace (trace,read,tracedby,readby) peer={DEFAULT_NAME},

  # Whatever lies directly in /proc is the whole machine's.
  deny /proc/* w,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /proc/{{acpi,bus,fs,irq,scsi}}/** wklx,

  # Of sysctls only net.* and kernel.{{msg,sem,shm}}* belong to namespaces.
  deny /proc/sys/[^kn]** wklx,
  deny /proc/sys/kernel/[^ms]** wklx,
  deny /proc/sys/kernel/m[^s]** wklx,
  deny /proc/sys/kernel/s[^eh]** wklx,
  deny /proc/sys/kernel/se[^m]** wklx,

  # Of /sys only the control groups are the container's.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/firmware/{{,**}} rwklx,
  deny /sys/devices/virtual/powercap/{{,**}} rwklx,
  deny /sys/kernel/security/{{,**}} rwklx,
}}
"""


def select(
    context: cri.LinuxContainerSecurityContext, host: Host, loaded: frozenset[str], default: str = DEFAULT_NAME
) -> str | None:
    """The name of the profile that a container gets; None for none.

    A container that asks for nothing gets RuntimeDefault where the host has it. Privileged containers get what they name
    and nothing by default. FAILED_PRECONDITION if the host cannot do what was asked for by name.
    """
    explicit, kind, reference = _asked(context)
    if kind == cri.SecurityProfile.Unconfined:
        return None
    if kind == cri.SecurityProfile.RuntimeDefault:
        if context.privileged:
            return None
        reference = default
    if not host.has_apparmor:
        if explicit:
            raise failed_precondition(f"AppArmor profile {reference!r} was asked for, but the host has no AppArmor")
        return None
    if reference not in loaded:
        if explicit:
            raise failed_precondition(f"AppArmor profile {reference!r} is not loaded in the kernel of this host")
        withheld(f"AppArmor: profile {reference} is not loaded")
        return None
    return reference


def _asked(context: cri.LinuxContainerSecurityContext) -> tuple[bool, int, str]:
    """Whether a profile was asked for, its kind, its name. The deprecated string is read if the field is absent."""
    if context.HasField("apparmor"):
        kind, reference = context.apparmor.profile_type, context.apparmor.localhost_ref
    elif not context.apparmor_profile:
        return False, cri.SecurityProfile.RuntimeDefault, ""
    elif context.apparmor_profile == "runtime/default":
        kind, reference = cri.SecurityProfile.RuntimeDefault, ""
    elif context.apparmor_profile == "unconfined":
        kind, reference = cri.SecurityProfile.Unconfined, ""
    elif context.apparmor_profile.startswith("localhost/"):
        kind, reference = cri.SecurityProfile.Localhost, context.apparmor_profile
    else:
        raise invalid(f"AppArmor profile {context.apparmor_profile!r} is not known")
    reference = reference.removeprefix("localhost/")
    if kind == cri.SecurityProfile.Localhost and not reference:
        raise invalid("AppArmor: a Localhost profile was asked for, but none is named")
    return True, kind, reference
