"""The version of crisp: of the package, the daemon and its answers."""

VERSION = "0.1.0"
