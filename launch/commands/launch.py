"""umbel launch, umbel resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import ConfigDir, Detach, Overrides, Run, Yes

if TYPE_CHECKING:
    from configs.schema import RunConfig

Prepare = Annotated[
    bool,
    typer.Option(
        "--prepare", help="Slurm: prepare the data here, before the job waits; else the workers do."
    ),
]
Multirun = Annotated[
    bool,
    typer.Option(
        "--multirun",
        "-m",
        help="Start a run for each combination of values ([cyan]optimizer.lr=1e-4,3e-4[/]).",
    ),
]


def launch(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    detach: Detach = False,
    yes: Yes = False,
    multirun: Multirun = False,
    prepare: Prepare = False,
) -> None:
    """Train: check everything, prepare the data, start the workers and show progress.

    A run that was begun before (same [cyan]run.name[/]) goes on from its newest checkpoint. Ctrl-C saves and
    ends it, a second Ctrl-C kills.

    With a cluster's profile ([cyan]cluster=mycluster[/]) it submits a Slurm job, after a look at everything
    that can go wrong, and returns.
    """
    from configs.compose import compose
    from launch.multirun import expand

    given = overrides or []
    configs = expand(given, config_dir) if multirun else [compose(given, config_dir)]
    raise typer.Exit(_start(configs, detach=detach, yes=yes, prepare=prepare))


def resume(
    run: Run,
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    change: Annotated[
        bool, typer.Option("--change", help="Allow keys that make it another run; recorded.")
    ] = False,
    detach: Detach = False,
    yes: Yes = False,
    prepare: Prepare = False,
) -> None:
    """Go on with a run, on other hardware if you like ([cyan]parallelism=zero3[/]).

    Everything else comes from its run.yaml.
    """
    from configs.compose import load
    from launch.overrides import apply
    from record.folder import RunFolder

    folder = RunFolder.find(run)
    config = apply(load(folder.run_yaml), overrides or [], config_dir)
    # The folder may have been moved since; relative to a scratch it would be looked for there.
    path = Path(folder.path).resolve() if config.cluster.scratch else folder.path
    config.run.dir, config.run.name = str(path.parent), path.name
    raise typer.Exit(_start([config], detach=detach, yes=yes, prepare=prepare, change=change))


def _start(configs: list[RunConfig], *, detach: bool, yes: bool, prepare: bool, change: bool = False) -> int:
    """By Slurm where the profile says so; here else, several runs one after another."""
    from base.errors import UmbelError
    from launch.local import launch as start
    from launch.local import typed_command
    from launch.slurm.submit import submit

    typed = typed_command(sys.argv)
    by_slurm = {config.cluster.launcher == "slurm" for config in configs}
    if by_slurm == {True}:
        return submit(configs, typed=typed, yes=yes, change=change, prepare=prepare)
    if True in by_slurm:
        raise UmbelError("cannot be both of this machine and of Slurm", where="cluster", fix="sweep twice")
    if detach and len(configs) > 1:
        raise UmbelError(
            f"{len(configs)} runs at once would share this machine's devices",
            where="--detach",
            fix="leave it out: they run one after another",
        )
    for config in configs:
        if code := start(config, typed=typed, detach=detach, yes=yes, change=change):
            return code
    return 0
