"""Whether a source gives something to learn; if not, what to change."""

from __future__ import annotations

from base.errors import UmbelError
from configs.schema import Data, Filters
from data.files import OpenSource
from data.rows.progress import SplitTotals
from data.sources import sources_of, weights_of


def check_enough(source: OpenSource, totals: dict[str, SplitTotals], data: Data) -> None:
    """Refuse a source without documents, and one of the mixture without a row to train on.

    Raises:
        UmbelError: says how much there was, and which key to change.
    """
    train, held_out = totals["train"], totals["held_out"]
    if not train.documents and not held_out.documents:
        raise no_documents(source, sources_of(data)[source.name].filters)
    if train.rows or source.name not in _read(data):
        return
    if train.rows_without_targets or train.truncated_documents:
        raise UmbelError(
            f"nothing to learn: {_all_cut(train, data)}",
            where=source.key,
            fix="set a longer data.sequence_length",
        )
    need = data.sequence_length + 1 if data.packing == "concat" else 2
    raise UmbelError(
        f"too little text to train on: {train.tokens} tokens ({held_out.tokens} more are held out), "
        f"and one row needs {need}",
        where=source.key,
        fix="give it more text, or lower data.sequence_length or data.held_out",
    )


def no_documents(source: OpenSource, filters: Filters) -> UmbelError:
    """The error of a source whose rows are blank, or all filtered out."""
    chosen = ", ".join(f"{key}={value}" for key, value in vars(filters).items() if value)
    if source.rows and chosen:
        what = f"holds no text: none of its {source.rows} documents passes its filters ({chosen})"
        return UmbelError(what, where=source.key, fix="loosen them")
    return UmbelError("holds no text", where=source.key, fix="check its path and its field")


def _read(data: Data) -> set[str]:
    """The sources that a run reads, in any of its phases."""
    phases = [{name for name, weight in phase.weights.items() if weight > 0} for phase in data.phases]
    return set(weights_of(data)).union(*phases)


def _all_cut(train: SplitTotals, data: Data) -> str:
    """Why chats (a text's tokens are all learned) made no row."""
    if data.packing == "concat":
        what = f"none of the {train.rows_without_targets} rows of data.sequence_length={data.sequence_length}"
        return f"{what} reaches an answer"
    return (
        f"data.sequence_length={data.sequence_length} cuts {train.truncated_documents} of "
        f"{train.documents} examples ({train.tokens // train.documents} tokens each on average) "
        "before their first answer"
    )
