"""umbel status."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Json


def status(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="One run; without it all in runs/.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show how far runs are: state, step, loss, speed, time left, last checkpoint.

    Of one run also how it ended, where the time went, its place in the queue, and its slowest node.
    """
    from dataclasses import asdict

    from launch.overview import one_status, statuses
    from launch.screens.console import out, print_json, say, warn
    from launch.screens.status import status_card, status_table
    from record.folder import RunFolder

    if run is not None:
        found = one_status(RunFolder.find(run), warn)
        print_json(asdict(found)) if json else out.print(status_card(found))
        return
    all_runs = statuses(RunFolder.all(), warn)
    if json:
        print_json([asdict(found) for found in all_runs])
    elif all_runs:
        out.print(status_table(all_runs))
    else:
        say("no runs in runs/; start one: umbel launch experiment=demo")
