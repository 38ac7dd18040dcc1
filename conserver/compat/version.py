"""`version`: what the image says it is, or else the version of this conserver."""

from __future__ import annotations

import os

import conserver


def get_version() -> str:
    """Return `VCON_SERVER_VERSION`, or the version of this conserver."""
    return os.environ.get("VCON_SERVER_VERSION") or conserver.__version__


def get_git_commit() -> str:
    """Return `VCON_SERVER_GIT_COMMIT`, or "unknown"."""
    return os.environ.get("VCON_SERVER_GIT_COMMIT") or "unknown"


def get_build_time() -> str:
    """Return `VCON_SERVER_BUILD_TIME`, or "unknown"."""
    return os.environ.get("VCON_SERVER_BUILD_TIME") or "unknown"


def get_version_info() -> dict[str, str]:
    """Return all three."""
    return {"version": get_version(), "git_commit": get_git_commit(), "build_time": get_build_time()}


def get_version_string() -> str:
    """Return all three in a sentence for people."""
    return f"{get_version()} (commit {get_git_commit()}, built {get_build_time()})"
