"""umbel plan."""

from __future__ import annotations

from launch.options import ConfigDir, Json, Overrides


def plan(overrides: Overrides = None, config_dir: ConfigDir = None, json: Json = False) -> None:
    """Say what a run would be and need: config, parameters, memory, disk, time. Starts nothing."""
