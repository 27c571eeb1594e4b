"""umbel checkpoint verify, inspect, diff, import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.importing import import_checkpoint
from launch.options import Json, Step

if TYPE_CHECKING:
    from checkpoint.verify import Mode

app = typer.Typer(no_args_is_help=True, help="Verify, look into, compare and import checkpoints.")

Place = Annotated[
    str,
    typer.Argument(metavar="PLACE", help="A run, RUN@STEP, or a checkpoint's folder.", show_default=False),
]


@app.callback()
def group() -> None:
    """Verify, look into, compare and import checkpoints."""


@app.command("verify")
def verify(
    place: Place,
    step: Step = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Manifest, sizes and headers alone.")] = False,
    finite: Annotated[bool, typer.Option("--finite", help="Refuse a NaN or infinite number, too.")] = False,
    every: Annotated[bool, typer.Option("--all", help="All checkpoints of the run.")] = False,
    json: Json = False,
) -> None:
    """Say ok, or name the file and the fact that is wrong. Executes nothing it reads; exit code 2 is no.

    Reads every byte and compares it with the sha256 it was saved with.
    """
    from base.errors import UmbelError
    from launch.checkpoints import find_checkpoint, find_checkpoints
    from launch.screens.console import out, print_json
    from launch.screens.trust import verified_card, verified_table
    from launch.trust import verified, verified_or_not

    if (sizes and finite) or (every and step is not None):
        wrong = "--sizes and --finite" if sizes else "--all and --step"
        raise UmbelError("exclude each other", where=wrong, fix="give one of them")
    mode: Mode = "sizes" if sizes else "finite" if finite else "full"
    if every:
        found = [verified_or_not(folder, mode) for folder in find_checkpoints(place).values()]
        print_json(found) if json else out.print(verified_table(found))
        raise typer.Exit(0 if all(each["ok"] for each in found) else 2)
    folder = find_checkpoint(place, step)
    if json:
        answer = verified_or_not(folder, mode)
        print_json(answer)
        raise typer.Exit(0 if answer["ok"] else 2)
    out.print(verified_card(verified(folder, mode)))


@app.command("inspect")
def inspect(
    place: Place,
    step: Step = None,
    norms: Annotated[
        bool | None,
        typer.Option("--norms/--no-norms", help="Norms of each layer.", show_default="if below 8 GiB"),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a checkpoint holds: step, tokens, topology, sizes, optimizer groups, norms of each layer."""
    from launch.checkpoints import find_checkpoint
    from launch.screens.checkpoint import checkpoint_card, groups_table, norms_table
    from launch.screens.console import out, print_json
    from launch.trust import described

    facts = described(find_checkpoint(place, step), norms)
    if json:
        print_json(facts)
        return
    out.print(checkpoint_card(facts), "", groups_table(facts["groups"]), sep="\n")
    if "norms" in facts:
        out.print("", norms_table(facts["norms"]), sep="\n")


@app.command("diff")
def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A run, RUN@STEP, or a checkpoint's folder.", show_default=False),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)],
    json: Json = False,
) -> None:
    """Say which facts and tensors differ, by how much. Exit code 0: the state is the same; 1: it is not."""
    from launch.checkpoints import find_checkpoint
    from launch.screens.console import out, print_json
    from launch.screens.trust import difference_json, difference_screen
    from launch.trust import compared

    found = compared(find_checkpoint(a), find_checkpoint(b))
    if json:
        print_json(difference_json(found))
    else:
        for index, part in enumerate(difference_screen(found)):
            out.print(*([""] if index else []), part, sep="\n")
    raise typer.Exit(0 if found.is_none else 1)


app.command("import")(import_checkpoint)
