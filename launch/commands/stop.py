"""umbel stop."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Run


def stop(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has saved and ended.")] = False,
) -> None:
    """Ask a run to save a checkpoint at the next step and end."""
    import time

    from launch.screens.console import say
    from record.control import request_stop
    from record.events import read_events
    from record.folder import RunFolder
    from record.state import run_state

    folder = RunFolder.find(run)
    state = run_state(folder, read_events(folder))
    if state not in ("running", "starting"):
        say(f"{folder.name} is not running; it is {state}")
        return
    request_stop(folder)
    if not wait:
        say(f"{folder.name} was asked to save and end; umbel status {folder.handle} tells when it has")
        return
    say(f"waiting for {folder.name} to save and end…")
    while (state := run_state(folder, read_events(folder))) in ("running", "starting"):
        time.sleep(0.2)
    say(f"{folder.name} is {state}")
