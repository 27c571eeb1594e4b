"""How much each source holds, as the manifest knows it: what weights, caps and epochs are reckoned from."""

from __future__ import annotations

from dataclasses import dataclass

from data.manifest import Manifest


@dataclass(frozen=True)
class Size:
    """A source's train split. ``is_exact`` in prepared mode; in streaming mode the numbers are estimates.

    ``tokens`` are those that its ``rows`` hold.
    """

    rows: float
    tokens: float
    documents: float
    is_exact: bool

    @property
    def tokens_per_row(self) -> float:
        return self.tokens / self.rows


def sizes_of(manifest: Manifest) -> dict[str, Size]:
    """The sizes by source. One without rows, or of a size that the manifest does not tell, is left out."""
    measure = _estimated if manifest.get("mode") == "streaming" else _counted
    sizes = {name: measure(name, manifest) for name in manifest["sources"]}
    return {name: size for name, size in sizes.items() if size is not None and size.rows > 0}


def _counted(name: str, manifest: Manifest) -> Size | None:
    train = manifest["sources"][name]["train"]
    rows = train["rows"]
    if manifest["packing"] == "concat":
        tokens = rows * manifest["sequence_length"]
    else:
        tokens = train["tokens"] - train.get("truncated_tokens", 0) - train.get("left_out_tokens", 0)
    return Size(rows, tokens, train["documents"] - train.get("left_out_documents", 0), is_exact=True)


def _estimated(name: str, manifest: Manifest) -> Size | None:
    estimate = manifest.get("estimates", {}).get(name, {})
    if not estimate.get("tokens"):
        return None
    kept, length = 1 - manifest.get("held_out", 0.0), manifest["sequence_length"]
    tokens, documents = kept * estimate["tokens"], kept * estimate["documents"]
    if manifest["packing"] == "concat":
        return Size(tokens / length, tokens, documents, is_exact=False)
    return Size(documents, min(tokens, documents * length), documents, is_exact=False)
