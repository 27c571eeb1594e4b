"""umbel doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Json


def doctor(
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Look at the Slurm site instead, and print a first profile of it."),
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            help="With --cluster: write the profile to this file.",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Look at this machine: versions, devices, compiler, Slurm, tokens, disk, memory."""
    if cluster:
        _cluster(write, json)
        return
    if write is not None:
        from base.errors import UmbelError

        raise UmbelError("writes a cluster's profile", where="--write", fix="add --cluster")
    _machine(json)


def _machine(json: bool) -> None:
    from dataclasses import asdict

    from launch.doctor import examine
    from launch.screens.console import out, print_json, table

    findings = examine(Path("runs"))
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "bad": "[red]✗[/]"}
        made = table("", "", "")
        made.show_header = False
        for finding in findings:
            made.add_row(marks[finding.level], finding.name, finding.text)
        out.print(made)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def _cluster(write: Path | None, json: bool) -> None:
    from dataclasses import asdict

    from base.errors import UmbelError
    from base.files import write_text
    from launch.screens.cluster import cluster_screen
    from launch.screens.console import err, print_json, say
    from launch.slurm.discover import discover, profile

    if write is not None and write.exists():
        raise UmbelError("is in the way", where=str(write), fix="name another file, or remove it")
    found = discover()
    text = profile(found, write.stem if write else "mycluster")
    if json:
        print_json({**asdict(found), "profile": text})
    else:
        err.print(cluster_screen(found))
    if write is not None:
        write_text(write, text)
        say(f"{write} is a first profile: read it, then umbel plan cluster={write.stem}")
    elif not json:
        print(text, end="")
