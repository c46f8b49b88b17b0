"""The daemon's own log: structlog, as JSON lines or for a terminal, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

import structlog

from proto.errors import invalid

if TYPE_CHECKING:
    from runtime.config.settings import LogConfig

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def check(config: LogConfig) -> None:
    """INVALID_ARGUMENT if the settings make no sense."""
    if config.level not in LEVELS:
        raise invalid(f"log.level: {config.level!r} is none of {', '.join(LEVELS)}")
    if config.format not in ("auto", "console", "json"):
        raise invalid(f"log.format: {config.format!r} is none of auto, console, json")


def configure(config: LogConfig) -> None:
    """Set structlog up, before anything logs; again when the settings have changed."""
    check(config)
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    final: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(pad_event_to=24)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[config.level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        # A logger that was cached would keep the level that it began with.
        cache_logger_on_first_use=False,
    )
