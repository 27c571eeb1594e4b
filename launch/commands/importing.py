"""umbel checkpoint import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.options import ConfigDir, Overrides


def import_checkpoint(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of the checkpoint.", show_default=False)
    ],
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Steps it has made.", show_default="as it says")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Which of DeepSpeed's checkpoints.", show_default="the newest")
    ] = None,
) -> None:
    """Make a run of what DeepSpeed, Accelerate or Transformers saved; [cyan]umbel resume[/] goes on from it.

    For checkpoints of your own. Their pickles are opened by a process that has no network and runs none of
    their code.
    """
    from configs.compose import compose
    from data.prepare import prepare_run
    from launch.job import freeze
    from launch.local import typed_command
    from launch.paths import absolute_paths
    from launch.screens.console import say, warn
    from launch.screens.preparing import preparing
    from record.folder import RunFolder
    from train.importing.make import find, growing, install

    config = absolute_paths(compose(overrides or [], config_dir))
    run = RunFolder.of(config)
    say("for checkpoints of your own: nothing vouches for what another's would teach the run")
    with growing(run) as folder:
        found = find(config, source, folder, step=step, tag=tag)
        for note in found.notes:
            warn(note)
        with preparing() as report:
            prepare_run(config, say, report)
        install(found, config, folder, source)
        freeze(folder, config, 0, typed_command(sys.argv), 1)
    say(f"{run.name} is at step {found.step}: {found.source.kind}")
    say(f"  umbel resume {run.handle}")
