"""umbel logs."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Run


def logs(
    run: Run,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Which worker's log.", show_default="rank 0")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing until the run ends.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Which start.", show_default="the newest")
    ] = None,
) -> None:
    """Print what the workers wrote."""
    from launch.screens.logs import choose_log, print_log
    from record.events import read_events
    from record.folder import RunFolder
    from record.state import run_state

    folder = RunFolder.find(run)

    def goes_on() -> bool:
        return follow and run_state(folder, read_events(folder)) in ("running", "starting")

    print_log(lambda: choose_log(folder, rank, attempt), goes_on)
