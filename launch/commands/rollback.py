"""umbel rollback."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch.options import Run


def rollback(
    run: Run,
    to: Annotated[
        int, typer.Option("--to", metavar="STEP", help="Step of a checkpoint.", show_default=False)
    ],
    skip_data: Annotated[
        str | None,
        typer.Option(
            "--skip-data",
            metavar="A:B|to-here",
            help="Leave out these numbers of the global order, or all that was read since that step.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Move a run back to an earlier checkpoint, and past bad data if you like.

    Newer checkpoints are set aside, not deleted. With [cyan]--skip-data to-here[/] the run goes on with other
    data than it had from there on: the cure of a loss spike.
    """
    from checkpoint.folders import clean
    from launch.preflight import take
    from launch.rollback import plan_rollback, roll_back
    from launch.screens.console import err, say
    from launch.screens.rollback import aside_told, rollback_card
    from record.folder import RunFolder
    from record.rollback import finish_rollback

    folder = RunFolder.find(run)
    with take(folder, say):
        finish_rollback(folder)
        clean(folder.checkpoints)
        plan = plan_rollback(folder, to, skip_data, say)
        err.print(rollback_card(folder, plan))
        if not yes and not _agreed():
            say("nothing was changed")
            raise typer.Exit(1)
        roll_back(folder, plan)
    say(f"{folder.name} is back at step {to}; to go on: umbel resume {folder.handle}")
    for line in aside_told(plan):
        say(line)


def _agreed() -> bool:
    """Ask on a terminal.

    Raises:
        UmbelError: there is none to ask on.
    """
    from base.errors import UmbelError

    if not sys.stdin.isatty():
        raise UmbelError("nobody can be asked: this is no terminal", where="umbel rollback", fix="add --yes")
    return typer.confirm("Go back?", err=True)
