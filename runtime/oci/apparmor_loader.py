"""Loading crisp's default AppArmor profile into a kernel that has AppArmor, at start and whenever it has gone."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Final

import structlog

from kernel import lsm
from runtime.oci.apparmor import DEFAULT_NAME, DEFAULT_TEXT

if TYPE_CHECKING:
    from runtime.host.host import Host

PARSER: Final = "apparmor_parser"
LOAD_SECONDS: Final = 30.0

log = structlog.get_logger(__name__)

_LOADING: Final = asyncio.Lock()


async def load_default(host: Host, profile: str) -> None:
    """Load the profile, or replace what an older crisp has loaded; a `profile` that is not crisp's is left alone.

    A failure is logged: containers that ask for RuntimeDefault by name are refused, others run without.
    """
    if not host.has_apparmor or profile != DEFAULT_NAME:
        return
    parser = shutil.which(PARSER)
    if parser is None:
        problem = "" if profile in lsm.apparmor_profiles() else f"no program {PARSER}: install the package apparmor"
    else:
        problem = await _parse(parser, "--replace", "--skip-cache")
    if problem:
        log.error("cannot load the AppArmor profile", profile=profile, error=problem)


async def ensure_default(host: Host, profile: str) -> None:
    """Before each use: load it again if it has gone (`aa-remove-unknown`, or a restart of the service apparmor)."""
    if not host.has_apparmor or profile != DEFAULT_NAME:
        return
    async with _LOADING:
        if profile not in lsm.apparmor_profiles():
            log.warning("the AppArmor profile is not loaded any more: loading it again", profile=profile)
            await load_default(host, profile)


async def unload_default() -> None:
    """Take the profile out of the kernel; nothing happens where it is not loaded or the parser is gone."""
    parser = shutil.which(PARSER)
    if parser is not None and DEFAULT_NAME in lsm.apparmor_profiles():
        await _parse(parser, "--remove")


async def _parse(parser: str, *options: str) -> str:
    """Have the parser do something with the profile; what went wrong, or empty."""
    process = await asyncio.create_subprocess_exec(
        *(parser, *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            _, errors = await process.communicate(DEFAULT_TEXT.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"{PARSER} did not end within {LOAD_SECONDS:.0f} s"
    return errors.decode(errors="replace").strip() or f"{PARSER} failed" if process.returncode else ""
