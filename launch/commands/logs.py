"""umbel logs."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Run


def logs(
    run: Run,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Only this worker's log.", show_default="all of them")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Go on printing until the run ends, through restarts and requeues."
        ),
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Which start.", show_default="the newest")
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Only what went wrong, the first fault first.")
    ] = False,
    launcher: Annotated[
        bool, typer.Option("--launcher", help="What the supervisor and Slurm's batch script printed.")
    ] = False,
) -> None:
    """Print what the workers wrote; of a run that failed, the first fault and its last words come first.

    Lines of several workers are merged, with rank@node before them: by time where they tell one.
    """
    from launch.first_error import faults
    from launch.following import Following
    from launch.logs import launcher_logs, worker_logs
    from launch.screens.console import say
    from launch.screens.logs import print_faults, print_logs
    from record.events import read_events
    from record.folder import RunFolder
    from record.state import run_state

    folder = RunFolder.find(run)
    if errors:
        found = faults(folder, attempt)
        print_faults(found)
        if not found:
            say(f"{folder.name}: nothing went wrong" + (f" in attempt {attempt}" if attempt else ""))
        return
    if launcher:
        print_logs(lambda: launcher_logs(folder), Following(folder, say) if follow else lambda: False)
        return
    if rank is None and not follow and run_state(folder, read_events(folder)) == "failed":
        print_faults(faults(folder, attempt)[:1])
    print_logs(
        lambda: worker_logs(folder, rank, attempt), Following(folder, say) if follow else lambda: False
    )
