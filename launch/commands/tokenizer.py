"""umbel tokenizer train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import ConfigDir, Overrides

app = typer.Typer(no_args_is_help=True, help="Make a tokenizer.")


@app.callback()
def group() -> None:
    """Make a tokenizer."""


@app.command("train")
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train a byte-level BPE on a run's data ([cyan]data=… data.tokenizer.vocab_size=…[/]).

    Use it in a run with [cyan]data.tokenizer.path=FOLDER[/].
    """
    from base.errors import UmbelError
    from configs.compose import compose
    from data.prepare import cache_folder, choose_tokenizer
    from data.sources import open_sources
    from launch.screens.console import say

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UmbelError("is in the way", where=str(out), fix="name a folder that does not exist")
    data = compose(overrides or [], config_dir).data
    data.tokenizer.path = None
    cache = cache_folder(data)
    tokenizer = choose_tokenizer(data, open_sources(data, cache, say), cache, None, say)
    tokenizer.save(out)
    say(f"wrote {out}, {tokenizer.vocab_size} tokens; use it with data.tokenizer.path={out}")
