"""umbel stop."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Run


def stop(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has saved and ended.")] = False,
) -> None:
    """Ask a run to save a checkpoint at the next step and end.

    Jobs of it that wait in Slurm's queue are taken out.
    """
    import time

    from launch.screens.console import say
    from launch.withdraw import ask_to_end
    from record.events import read_events
    from record.folder import RunFolder
    from record.state import WORKING, run_state

    folder = RunFolder.find(run)
    works, withdrawn = ask_to_end(folder)
    if withdrawn:
        say(f"{folder.name} was taken out of the queue (job {', '.join(withdrawn)})")
    if not works:
        if not withdrawn:
            say(f"{folder.name} is not running; it is {run_state(folder, read_events(folder))}")
        return
    if not wait:
        say(f"{folder.name} was asked to save and end; umbel status {folder.handle} tells when it has")
        return
    say(f"waiting for {folder.name} to save and end…")
    while (state := run_state(folder, read_events(folder))) in WORKING:
        time.sleep(0.2)
    say(f"{folder.name} is {state}")
