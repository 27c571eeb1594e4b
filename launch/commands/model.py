"""umbel generate, umbel export, umbel eval: thin shells around functions of train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Json, Run, Step


def generate(
    run: Run,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue.", prompt=True)],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length of the continuation.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same text.")] = 0,
    step: Step = None,
) -> None:
    """Let a run's model continue a text."""
    from train.generate import generate as continue_text

    text = continue_text(run, prompt, max_new_tokens, step, temperature, seed)
    print(text)


def export(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; must not exist.", show_default=False)
    ],
    step: Step = None,
    merge: Annotated[
        bool, typer.Option("--merge/--adapter", help="LoRA: one whole model, or the adapter alone.")
    ] = True,
) -> None:
    """Write a folder that transformers' AutoModelForCausalLM.from_pretrained loads."""
    from launch.screens.console import say
    from train.export import export as write

    say(f"wrote {write(run, out, step, merge)}")


def evaluate(
    run: Run,
    step: Step = None,
    sequences: Annotated[int, typer.Option("--sequences", help="Held-out sequences per source.")] = 64,
    json: Json = False,
) -> None:
    """Measure the loss on held-out text, per source, in nats per token."""
    import math

    from launch.screens.console import out, print_json, table
    from train.evaluate import evaluate_run

    losses = evaluate_run(run, step, sequences)
    if json:
        print_json(losses)
        return
    made = table("source", "loss", "perplexity", right=("loss", "perplexity"))
    for source, loss in losses.items():
        made.add_row(source, f"{loss:.4f}", f"{math.exp(loss):.1f}")
    out.print(made)
