"""umbel preflight."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import ConfigDir, Json, Overrides

if TYPE_CHECKING:
    from launch.nodes.command import Looked


def preflight(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", help="How many nodes.", min=1, show_default="those of the cluster's profile"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write passing_nodes.txt and failing_nodes.txt into this folder.",
            show_default=False,
            file_okay=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Look at the nodes a run would get: devices, memory, network, speed. Exit code 1 if some fail.

    With a Slurm profile it asks for the nodes by itself, for minutes.
    """
    from configs.compose import compose
    from launch.nodes.command import look, needs_allocation, write_lists
    from launch.paths import absolute_paths

    config = absolute_paths(compose(overrides or [], config_dir))
    if needs_allocation(config):
        from launch.nodes.allocation import run_in_allocation

        if nodes is not None:
            config.cluster.nodes, config.cluster.spare_nodes = nodes, 0
        raise typer.Exit(run_in_allocation(config, _again(overrides, config_dir, nodes, out, json)))
    looked = look(config, nodes)
    if out is not None:
        write_lists(looked, out)
    _show(looked, json)
    if looked.survey.failing:
        raise typer.Exit(1)


def _again(
    overrides: list[str] | None, config_dir: Path | None, nodes: int | None, out: Path | None, json: bool
) -> list[str]:
    """The same command, to be run where the nodes are given."""
    options = {"--config-dir": config_dir, "--nodes": nodes, "--out": out}
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return [
        sys.executable,
        "-P",
        "-m",
        "umbel",
        "preflight",
        *(overrides or []),
        *given,
        *["--json"][: int(json)],
    ]


def _show(looked: Looked, json: bool) -> None:
    from dataclasses import asdict

    from launch.nodes.run import notes
    from launch.screens.console import out, print_json
    from launch.screens.preflight import preflight_screen

    if json:
        seen = asdict(looked.survey)
        print_json({"passing": looked.passing, **seen, "seconds": round(looked.seconds, 1)})
    else:
        out.print(preflight_screen(looked, notes(looked.survey)))
