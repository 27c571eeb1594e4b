"""umbel data prepare, inspect, batches, mix, card."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import ConfigDir, Json, Overrides, RunOption

app = typer.Typer(no_args_is_help=True, help="Prepare a run's data, and see what the model is fed.")


@app.command("prepare")
def prepare(overrides: Overrides = None, config_dir: ConfigDir = None, run: RunOption = None) -> None:
    """Tokenize and pack the data of a run; launch does this by itself.

    With [cyan]data.mode=streaming[/]: only the manifest, the tokenizer and the held-out rows.
    """
    from launch.batches import chosen_config, prepared_rows
    from launch.screens.console import out
    from launch.screens.data import padding_told, prepared_table

    prepared = prepared_rows(chosen_config(run, overrides or [], config_dir), run)
    out.print(prepared_table(prepared.manifest))
    if padding := padding_told(prepared.manifest):
        out.print(padding)
    out.print(f"in {prepared.folder}", soft_wrap=True, markup=False)


@app.command("inspect")
def inspect(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    run: RunOption = None,
    step: Annotated[int, typer.Option("--step", help="Step of the run, from 1.")] = 1,
    slot: Annotated[
        int | None, typer.Option("--slot", help="One sequence of the step, from 0.", show_default="all")
    ] = None,
    json: Json = False,
) -> None:
    """Print a step's sequences as text, with the source of each."""
    from data.inspect import sequences
    from launch.batches import check_steps, chosen_config, open_stream, start_before
    from launch.screens.console import out, print_json
    from launch.screens.data import sequence_panel

    config = chosen_config(run, overrides or [], config_dir)
    check_steps(range(step, step + 1), config.schedule.steps, "--step")
    stream = open_stream(config, run)
    found = sequences(stream, step, slot, start_before(stream, run, step))
    if json:
        print_json(found)
        return
    for sequence in found:
        out.print(sequence_panel(sequence))


@app.command("batches")
def batches(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    run: RunOption = None,
    steps: Annotated[str, typer.Option("--steps", help="One step, or a range: 3:10 is 3 to 9.")] = "1",
    world: Annotated[int, typer.Option("--world", min=1, help="World size: how many processes.")] = 1,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Which of them.")] = 0,
    micro_batch: Annotated[int, typer.Option("--micro-batch", min=1, help="Sequences per forward pass.")] = 1,
    json: Json = False,
) -> None:
    """Print the token ids that a rank would get. The order is the same at every world size."""
    from base.errors import UmbelError
    from configs.batch import check_batch
    from data.inspect import batches as batches_of
    from data.stream import Share
    from launch.batches import chosen_config, open_stream, parse_steps, start_before
    from launch.screens.console import out, print_json
    from launch.screens.data import batches_table

    if rank >= world:
        raise UmbelError(
            f"rank {rank} does not exist among {world} processes", where="--rank", fix="count from 0"
        )
    config = chosen_config(run, overrides or [], config_dir)
    wanted = parse_steps(steps, config.schedule.steps)
    check_batch(config, world, micro_batch)
    stream = open_stream(config, run)
    share = Share(rank, world, micro_batch)
    found = batches_of(stream, wanted, share, start_before(stream, run, wanted.start))
    if json:
        print_json(found)
    else:
        out.print(batches_table(found))


@app.command("mix")
def mix(
    overrides: Overrides = None, config_dir: ConfigDir = None, run: RunOption = None, json: Json = False
) -> None:
    """Print what the run plans to take of each source; with --run also what it has taken so far."""
    from launch.batches import chosen_config
    from launch.mix import manifest_of, mix_of, sequences_so_far
    from launch.screens.console import out, print_json, warn
    from launch.screens.mix import mix_screen
    from record.folder import RunFolder

    config = chosen_config(run, overrides or [], config_dir)
    folder = RunFolder.find(run) if run else None
    manifest = manifest_of(folder, config, changed=bool(overrides))
    found = mix_of(config, manifest, sequences_so_far(folder) if folder else None)
    if json:
        print_json(found)
        return
    out.print(mix_screen(found))
    if found["problem"]:
        warn(found["problem"])


@app.command("card")
def card(overrides: Overrides = None, config_dir: ConfigDir = None, run: RunOption = None) -> None:
    """Print the data card: sources, licences and languages as Markdown, for a dataset or model repository."""
    from data.card import data_card
    from launch.batches import chosen_config
    from launch.mix import manifest_of
    from record.folder import RunFolder

    config = chosen_config(run, overrides or [], config_dir)
    folder = RunFolder.find(run) if run else None
    print(data_card(manifest_of(folder, config, changed=bool(overrides)), config.data))
