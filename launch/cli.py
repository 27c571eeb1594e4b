"""The command line: which verbs there are, and in which group of the help they stand."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.commands import (
    cancel,
    checkpoint,
    data,
    demo,
    doctor,
    launch,
    logs,
    model,
    plan,
    preflight,
    rollback,
    status,
    stop,
    tokenizer,
    top,
)

START, RUNNING, RESULTS, LOOK = "Start", "While it runs", "Use the result", "Look inside"

_HELP = """
Train one language model across machines and institutions.

[bold]First steps[/]

  umbel demo                                          see it all at work, in minutes

  umbel plan model=bloom_560m data=python             what a run would need; starts nothing

  umbel launch experiment=demo optimizer.lr=1e-3      train

  umbel launch experiment=finetune model.pretrained=my/model data.path=my.jsonl

  umbel status  ·  umbel logs demo -f  ·  umbel stop demo  ·  umbel resume demo
"""

app = typer.Typer(
    name="umbel",
    help=_HELP,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"umbel {version('umbel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command("demo", rich_help_panel=START)(demo.demo)
app.command("plan", rich_help_panel=START)(plan.plan)
app.command("launch", rich_help_panel=START)(launch.launch)
app.command("resume", rich_help_panel=START)(launch.resume)
app.command("status", rich_help_panel=RUNNING)(status.status)
app.command("logs", rich_help_panel=RUNNING)(logs.logs)
app.command("top", rich_help_panel=RUNNING)(top.top)
app.command("stop", rich_help_panel=RUNNING)(stop.stop)
app.command("cancel", rich_help_panel=RUNNING)(cancel.cancel)
app.command("rollback", rich_help_panel=RUNNING)(rollback.rollback)
app.command("generate", rich_help_panel=RESULTS)(model.generate)
app.command("eval", rich_help_panel=RESULTS)(model.evaluate)
app.command("export", rich_help_panel=RESULTS)(model.export)
app.command("doctor", rich_help_panel=LOOK)(doctor.doctor)
app.command("preflight", rich_help_panel=LOOK)(preflight.preflight)
app.add_typer(data.app, name="data", rich_help_panel=LOOK)
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel=LOOK)
app.add_typer(checkpoint.app, name="checkpoint", rich_help_panel=LOOK)
