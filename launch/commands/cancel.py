"""umbel cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Run


def cancel(
    run: Run,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End a run now, without a save: what it did since its newest checkpoint is lost.

    Its jobs are taken out of Slurm, those that wait, too; on this machine its processes are killed.
    [cyan]umbel stop[/] is the gentle way: it saves first.
    """
    import sys

    from base.errors import UmbelError
    from launch.cancel import cancel as end
    from launch.cancel import check_can_end, find_jobs
    from launch.screens.console import say
    from launch.status import status_of
    from record.folder import RunFolder

    folder = RunFolder.find(run)
    jobs = find_jobs(folder)
    check_can_end(folder, jobs)
    found = status_of(folder)
    lost = found.step - (found.checkpoint_step or 0)
    if not yes:
        if not sys.stdin.isatty():
            raise UmbelError("nobody is here to say yes", where=folder.name, fix="pass --yes")
        steps = f"the {lost} steps since its newest checkpoint are lost" if lost else "no step is lost"
        if not typer.confirm(f"End {folder.name} now? {steps}; umbel stop saves first.", err=True):
            say("nothing was done")
            raise typer.Exit(1)
    end(folder, jobs)
    named = f" (job {', '.join(job.id for job in jobs)})" if jobs else ""
    say(f"{folder.name} was ended{named}; umbel resume {folder.handle} goes on from its newest checkpoint")
