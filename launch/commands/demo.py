"""umbel demo."""

from __future__ import annotations

import typer

from launch.options import Overrides


def demo(overrides: Overrides = None) -> None:
    """See it all at work in minutes, on this machine's CPU.

    A small BLOOM learns your Python library with 2 processes, stops, and goes on with 1.
    """
    from launch import demo as steps
    from launch.screens.console import err, out, say
    from launch.screens.demo import learned_screen
    from launch.screens.useful import useful_commands

    name = steps.free_name(overrides or [])
    config = steps.config_of(name, overrides or [])
    err.rule(f"[bold]1[/] train on 2 processes, ZeRO stage 2, to step {config.schedule.steps // 2}")
    if not steps.half_done(config) and (code := steps.train_first_half(config)):
        raise typer.Exit(code)
    err.rule("[bold]2[/] go on with 1 process, ZeRO stage 3: same run, same numbers")
    if code := steps.train_second_half(config):
        raise typer.Exit(code)
    err.rule("[bold]3[/] what it learned")
    say("measuring the loss on held-out text…")
    learned = steps.what_it_learned(config)
    out.print(learned_screen(learned))
    useful_commands(name, steps.NEXT, steps=2 * config.schedule.steps)
    raise typer.Exit(0 if learned.well_below else 1)
