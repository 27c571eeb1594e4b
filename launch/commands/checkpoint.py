"""umbel checkpoint inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import Json, Step

app = typer.Typer(no_args_is_help=True, help="Look into checkpoints.")


@app.callback()
def group() -> None:
    """Look into checkpoints."""


@app.command("inspect")
def inspect(
    place: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, or a checkpoint's folder.", show_default=False)
    ],
    step: Step = None,
    json: Json = False,
) -> None:
    """Show what a checkpoint holds: step, tokens, topology, sizes. Reads the manifest alone."""
    from checkpoint.inspect import describe
    from launch.checkpoints import find_checkpoint
    from launch.screens.checkpoint import checkpoint_card
    from launch.screens.console import out, print_json

    facts = describe(find_checkpoint(place, step))
    print_json(facts) if json else out.print(checkpoint_card(facts))
