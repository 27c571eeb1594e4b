"""The demo's last screen."""

from __future__ import annotations

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.demo import PROMPT, Learned
from launch.screens.console import table


def learned_screen(learned: Learned) -> Group:
    """The losses against the unigram entropy, and what the model writes; fits 80 columns."""
    sample = Text(PROMPT, style="bold") + Text(learned.sample.removeprefix(PROMPT))
    return Group(
        Text(),
        _losses(learned),
        Text(),
        _verdict(learned),
        Text(),
        Panel(sample, title="it writes", title_align="left", border_style="dim"),
    )


def _losses(learned: Learned) -> Table:
    made = table("loss, nats per token", "", "", right=("",))
    entropy = learned.unigram_entropy
    rows = [
        ("knowing only how frequent each token is", entropy),
        ("at step 1", learned.first_loss),
        (f"by step {learned.handover_step}, handed over: 2 processes to 1", learned.handover_loss),
        (f"by step {learned.final_step}, the end", learned.final_loss),
        *((f"held-out text, {source}", loss) for source, loss in sorted(learned.held_out.items())),
    ]
    for name, loss in rows:
        mark = "[green]✓[/]" if loss < entropy - 0.5 else ""
        made.add_row(name, f"{loss:.3f}", mark)
    return made


def _verdict(learned: Learned) -> Text:
    if learned.well_below:
        gap = learned.unigram_entropy - learned.held_out_mean
        return Text(
            f"✓ It learned: on text it never saw, {gap:.1f} nats below mere frequencies.", style="green"
        )
    return Text(
        "✗ It did not get well below mere frequencies; more steps may: umbel demo schedule.steps=1000.",
        style="red",
    )
