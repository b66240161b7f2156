"""An unfinished run can be taken up with the same command, settings and inputs as when it began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.common import Config
from ..files import digest
from .snapshots import LAYOUT

NO_MATTER = {"threads", "device", "download", "allow_weak_teacher"}
"""No result depends on these settings."""


def contents(config: Config) -> dict[str, str | None]:
    """Return digests of the files that the settings name; None for an unreadable file, which its reader will report."""
    return {name: digest(path) for name, path in config.files.items()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that differ and on which results depend."""
    return sorted(name for name in {*before, *now} - NO_MATTER if before.get(name) != now.get(name))


def why_not(
    snapshot: Mapping[str, Any] | None, command: str, config: Config, inputs: Mapping[str, str | None]
) -> str | None:
    """Return why a run of ``command`` cannot take up ``snapshot``; None if it can.

    ``inputs`` are digests of the run's inputs, by the setting that names them.
    """
    if snapshot is None:
        return "holds no unfinished run"
    if snapshot.get("layout") != LAYOUT:
        return "holds a run of another version of nni-autorecon"
    if snapshot["command"] != command:
        return f"holds a run of {snapshot['command']}, not of {command}"
    if changed := changes(snapshot["config"], config.to_dict()):
        return f"was started with other settings ({', '.join(changed)})"
    if changed := [name for name, now in inputs.items() if now not in (None, snapshot["files"].get(name))]:
        named = ", ".join(f"{name} {config.files.get(name, '')}".strip() for name in changed)
        return f"was started with other contents of {named}"
    return None
