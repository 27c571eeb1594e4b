"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings: a preset ([cyan]model=bloom_560m[/]) or one key ([cyan]optimizer.lr=1e-4[/]).",
        show_default=False,
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir", help="Folder with presets of your own.", show_default=False, file_okay=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run in runs/, or its folder.", show_default=False)
]
Step = Annotated[
    int | None, typer.Option("--step", help="Use the checkpoint of this step.", show_default="the newest")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Go on in the background, also when the terminal closes.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Start although memory or disk seem too small.")]
RunOption = Annotated[
    str | None,
    typer.Option("--run", help="Take the config of this run, not of overrides.", show_default=False),
]
