"""A run that was begun before: whether it is the same one, and whether anything is left to do."""

from __future__ import annotations

from typing import Any

from base.errors import UmbelError
from configs.compose import differing_keys, load
from configs.schema import RunConfig
from launch.screens.console import err, say
from launch.screens.differences import differences_table
from record.events import latest, read_events
from record.folder import RunFolder


def changed_keys(config: RunConfig, folder: RunFolder, change: bool) -> list[tuple[str, Any, Any]]:
    """The defining keys in which the run in the folder differs, as (key, old, new); ``change`` allows some.

    Raises:
        UmbelError: there are some, and nobody said that they are meant.
    """
    if not folder.run_yaml.is_file():
        return []
    changed = differing_keys(load(folder.run_yaml), config)
    if changed and not change:
        err.print(differences_table(changed))
        raise UmbelError(
            f"belongs to another run: {len(changed)} of its keys differ",
            where=str(folder.path),
            fix=f"set run.name, or umbel resume {folder.handle}; with --change it takes the new keys",
        )
    return changed


def is_finished(config: RunConfig, folder: RunFolder) -> bool:
    """Whether nothing is left to do; says then how to do more."""
    ending = latest(read_events(folder), "start", "stopped", "finished", "failed")
    if ending is None or ending["event"] != "finished" or ending["step"] < config.schedule.steps:
        return False
    say(f"{folder.name} is finished; for a new run set run.name, for more steps:")
    say(f"  umbel resume {folder.handle} --change schedule.steps={2 * config.schedule.steps}")
    return True
