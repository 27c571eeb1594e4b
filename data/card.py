"""The data card of a run's data: Markdown under the metadata of Hugging Face dataset cards."""

from __future__ import annotations

import json
from typing import Any

import yaml

from base.files import human_bytes
from configs.schema import Data
from data.manifest import Manifest
from data.manifest_shape import SPLITS
from data.sources import sources_of

_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
          (1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B"),
          (1e12, "100B<n<1T"))  # fmt: skip
_ROWS = {
    "concat": "documents end to end, cut into rows; where one goes on in the next row, a token is shared",
    "best_fit": "whole documents together, as many as fit a row (Ding et al. 2024, arXiv:2404.10830)",
    "none": "one document per row",
}
_REBUILD = """\
The run's `run.yaml` names the sources. With the same files, `umbel data prepare` makes the same rows on any
machine, with any number of processes; the fingerprint tells:

```bash
umbel data prepare --run <name>
```

Files that have changed are refused by name. To hand the rows themselves on, copy the Parquet files,
`tokenizer/` and `manifest.json`; the Arrow copies are made again where they are missing."""


def data_card(manifest: Manifest, data: Data) -> str:
    """A dataset card: metadata, a table of the sources, and how the rows came to be. It names no place of
    the machine it was written on."""
    parts = [
        "---\n" + yaml.safe_dump(_metadata(manifest), sort_keys=False, allow_unicode=True) + "---",
        "# Training data of an Umbel run",
        _introduction(manifest),
        "## Sources",
        _table(_COLUMNS, [_source(name, manifest) for name in sources_of(data)]),
        *_skipped(manifest),
        "## Tokens and rows",
        "\n".join(f"- {line}" for line in _making(manifest)),
        "## Mixture",
        _mixture(data),
        "## How to rebuild it",
        _REBUILD,
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: Manifest) -> dict[str, Any]:
    said = manifest["about"].values()
    licenses = sorted({source["license"] for source in said if source["license"]})
    languages = sorted({source["language"] for source in said if source["language"]})
    documents = sum(_documents(name, manifest) for name in manifest["sources"])
    metadata: dict[str, Any] = {"pretty_name": "Training data of an Umbel run"}
    if licenses:
        metadata["license"] = licenses[0] if len(licenses) == 1 else licenses
    if languages:
        metadata["language"] = languages
    category = next((name for most, name in _SIZES if documents < most), "n>1T")
    return metadata | {
        "size_categories": [category],
        "task_categories": ["text-generation"],
        "tags": ["umbel", "pretokenized" if manifest["mode"] == "prepared" else "streaming"],
    }


def _introduction(manifest: Manifest) -> str:
    if manifest["mode"] == "prepared":
        held = "the tokenized rows that the run reads, in Parquet, and the tokenizer they were made with"
    else:
        held = "the held-out rows of a run that tokenizes its text while it trains, and its tokenizer"
    return f"This folder holds {held}. `manifest.json` lists every file that it came from, by its hash."


_COLUMNS = (
    "source", "documents", "tokens", "rows", "held-out rows", "licence", "language", "revision", "files",
    "bytes", "filters",
)  # fmt: skip


def _source(name: str, manifest: Manifest) -> tuple[str, ...]:
    source, said = manifest["sources"][name], manifest["about"][name]
    is_exact = manifest["mode"] == "prepared"
    tokens = _total(source, "tokens") if is_exact else manifest["estimates"][name]["tokens"]
    about = "" if is_exact else "about "
    filters = {key: value for key, value in source["filters"].items() if value}
    return (
        name,
        f"{about}{_documents(name, manifest):,}",
        f"{about}{tokens:,}",
        f"{source['train']['rows']:,}" if is_exact else "made while training",
        f"{source['held_out']['rows']:,}",
        said["license"] or "not declared",
        said["language"] or "not declared",
        (source["revision"] or "")[:12],
        f"{len(source['files']):,}",
        human_bytes(sum(file["size"] for file in source["files"])),
        ", ".join(
            f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(filters.items())
        ),
    )


def _documents(name: str, manifest: Manifest) -> int:
    if manifest["mode"] == "streaming":
        return int(manifest["estimates"][name]["documents"])
    return _total(manifest["sources"][name], "documents")


def _total(source: Manifest, key: str) -> int:
    return sum(int(source[split][key]) for split in SPLITS)


def _skipped(manifest: Manifest) -> list[str]:
    return [
        f"Left out of {name}, for they could not be read: "
        + ", ".join(f"`{file}`" for file in source["skipped"])
        for name, source in manifest["sources"].items()
        if source["skipped"]
    ]


def _making(manifest: Manifest) -> list[str]:
    lines = [
        f"tokenizer: {manifest['vocab_size']:,} ids, sha256 `{manifest['tokenizer_hash']}`, in `tokenizer/`",
        f"rows of {manifest['sequence_length']} tokens and one more, the last target",
        f"packing `{manifest['packing']}`: {_ROWS[manifest['packing']]}",
        f"held out for evaluation: {manifest['held_out']:.2%} of the documents, by the hash of their text",
    ]
    if manifest["packing"] != "concat" and manifest["mode"] == "prepared":
        lines.append(f"padding: {padding_share(manifest):.2%} of the train rows")
    if manifest["max_bytes"] is not None:
        lines.append(f"at most {human_bytes(manifest['max_bytes'])} of each source were read")
    return [*lines, f"fingerprint: `{manifest['fingerprint']}`"]


def padding_share(manifest: Manifest) -> float:
    """What share of the train rows' places no token fills; 0 where documents are packed end to end."""
    totals = [source["train"] for source in manifest["sources"].values()]
    places = sum(split["rows"] for split in totals) * (manifest["sequence_length"] + 1)
    return sum(split["padding_tokens"] for split in totals) / places if places else 0.0


def _mixture(data: Data) -> str:
    sources = sources_of(data)
    phases = {"from the start": {name: source.weight for name, source in sources.items()}}
    phases |= {f"from {phase.from_tokens:,.0f} tokens": phase.weights for phase in data.phases}
    rows = [(name, *(f"{weights.get(name, 0):g}" for weights in phases.values())) for name in sources]
    how = f"Weights are {data.mixture.weights}, in {data.mixture.by}"
    if data.mixture.weights != "declared":
        how += "; those declared are"
    return f"{how}:\n\n" + _table(("source", *phases), rows)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
