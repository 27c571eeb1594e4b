"""umbel doctor."""

from __future__ import annotations

import typer

from launch.options import Json


def doctor(json: Json = False) -> None:
    """Look at this machine: versions, devices, compiler, Slurm, tokens, disk, memory."""
    from dataclasses import asdict
    from pathlib import Path

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
