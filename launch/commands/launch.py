"""umbel launch, umbel resume."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch.options import ConfigDir, Detach, Overrides, Run, Yes


def launch(
    overrides: Overrides = None, config_dir: ConfigDir = None, detach: Detach = False, yes: Yes = False
) -> None:
    """Train: check everything, prepare the data, start the workers and show progress.

    A run that was begun before (same [cyan]run.name[/]) goes on from its newest checkpoint. Ctrl-C saves and
    ends it, a second Ctrl-C kills.
    """
    from configs.compose import compose
    from launch.local import launch as start
    from launch.local import typed_command

    config = compose(overrides or [], config_dir)
    raise typer.Exit(start(config, typed=typed_command(sys.argv), detach=detach, yes=yes))


def resume(
    run: Run,
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    change: Annotated[
        bool, typer.Option("--change", help="Allow keys that make it another run; recorded.")
    ] = False,
    detach: Detach = False,
    yes: Yes = False,
) -> None:
    """Go on with a run, on other hardware if you like ([cyan]parallelism=zero3[/]).

    Everything else comes from its run.yaml.
    """
    from configs.compose import load
    from launch.local import launch as start
    from launch.local import typed_command
    from launch.overrides import apply
    from record.folder import RunFolder

    folder = RunFolder.find(run)
    config = apply(load(folder.run_yaml), overrides or [], config_dir)
    # The folder may have been moved since.
    config.run.dir, config.run.name = str(folder.path.parent), folder.path.name
    raise typer.Exit(start(config, typed=typed_command(sys.argv), detach=detach, yes=yes, change=change))
