"""The model card of an exported run: what it is, what it saw, how to load it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from base.files import human_bytes
from record.events import read_events, standing
from record.metrics import read_metrics
from train.weights import RunModel

_CARD = """---
{header}---

# {name}

{what}

| | |
|---|---|
| run | {name} (`{run_id}`) |
| step | {step:,} of {steps:,} |
| sequences | {sequences:,} |
| tokens learned from | {tokens:,} |
| training loss | {loss} |
| held-out loss | {held_out} |

Losses are in nats per token.

## Data

| source | files | size | documents | licence |
|---|---|---|---|---|
{sources}

## Use

```python
{code}
```

Made with Umbel {version}.
"""
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""


def model_card(loaded: RunModel, *, merged: bool) -> str:
    """Markdown with the header that model hubs read. Says nothing of the machine it was trained on."""
    config, position = loaded.config, loaded.position
    loss, held_out = _losses(loaded)
    return _CARD.format(
        header=yaml.safe_dump(_header(loaded, merged), sort_keys=False),
        name=config.run.name,
        what=_what(loaded, merged),
        run_id=loaded.run_id,
        step=position.step,
        steps=config.schedule.steps,
        sequences=position.sequences,
        tokens=position.tokens,
        loss=loss,
        held_out=held_out,
        sources="\n".join(_source_row(name, source) for name, source in loaded.data["sources"].items()),
        code=_WHOLE if merged else _ADAPTER.format(base=_base(loaded)),
        version=version("umbel"),
    )


def _header(loaded: RunModel, merged: bool) -> dict[str, Any]:
    header: dict[str, Any] = {
        "license": "unknown",
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["umbel"],
    }
    name = loaded.config.model.pretrained
    # A hub name is known everywhere, a folder only here.
    if name is not None and not Path(name).expanduser().is_dir():
        header["base_model"] = name
    return header


def _what(loaded: RunModel, merged: bool) -> str:
    model = loaded.config.model
    if model.pretrained is None:
        return f"A {model.arch} language model, trained from its first weights."
    if model.lora is None:
        return f"{_base(loaded)}, fine-tuned in all of its weights."
    adapters = f"low-rank adapters (r = {model.lora.r}, alpha = {model.lora.alpha:g})"
    return (
        f"{_base(loaded)} with {adapters} merged in."
        if merged
        else f"{adapters} for {_base(loaded)}.".capitalize()
    )


def _base(loaded: RunModel) -> str:
    name = str(loaded.config.model.pretrained)
    return Path(name).name if Path(name).expanduser().is_dir() else name


def _losses(loaded: RunModel) -> tuple[str, str]:
    """As last measured up to the exported step."""
    step = loaded.position.step
    lines = [line for line in read_metrics(loaded.folder) if line["step"] <= step]
    told = [
        event
        for event in standing(read_events(loaded.folder))
        if event["event"] == "evaluation" and event["step"] <= step
    ]
    loss = f"{lines[-1]['loss']:.4f}" if lines and lines[-1]["loss"] is not None else "not recorded"
    if not told:
        return loss, "not measured"
    losses = ", ".join(
        f"{name} {value:.4f}" for name, value in told[-1]["losses"].items() if value is not None
    )
    return loss, f"{losses} (step {told[-1]['step']:,})"


def _source_row(name: str, source: dict[str, Any]) -> str:
    size = human_bytes(sum(file["size"] for file in source["files"]))
    documents = source["train"]["documents"]
    licence = source.get("licence") or "unknown"
    return f"| {name} | {len(source['files'])} | {size} | {documents:,} | {licence} |"
