"""umbel top."""

from __future__ import annotations

from typing import Annotated

import typer


def top(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN…", help="These runs; without any, all in runs/.", show_default=False),
    ] = None,
) -> None:
    """Watch runs live: loss, speed, nodes, what happened last. q leaves; arrows choose a run."""
    from launch.screens.console import out
    from launch.screens.live import watch
    from launch.top import Top
    from record.folder import RunFolder

    folders = [RunFolder.find(run) for run in runs] if runs else None
    watch(Top(folders), out)
