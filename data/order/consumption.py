"""What a run takes of each source: tokens and epochs, and no more than its caps allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from base.errors import UmbelError
from configs.schema import Data
from data.manifest import Manifest
from data.order.sizes import Size, sizes_of
from data.sources import key_of, sources_of

if TYPE_CHECKING:
    from data.order.global_order import GlobalOrder


def consumption(order: GlobalOrder, manifest: Manifest, sequences: int) -> dict[str, dict[str, float]]:
    """``{source: {"tokens": …, "epochs": …}}`` after the run's first ``sequences``.

    Rows that ``data.skip`` jumps over count: they are used up. Where the manifest does not tell a source's
    size there are no epochs, and a row counts as full.
    """
    sizes = sizes_of(manifest)
    return {
        name: _taken(rows, sizes.get(name), manifest["sequence_length"])
        for name, rows in order.counts(sequences).items()
    }


def check_caps(data: Data, manifest: Manifest, order: GlobalOrder, sequences: int) -> None:
    """Refuse a run of ``sequences`` that would read a source more often than its ``max_epochs``.

    A mixture rounds by a row or two: a row and a thousandth more is let pass. What is known only by its
    estimated size is checked by that, and what is not known at all cannot be checked.

    Raises:
        UmbelError: names the source, its epochs and tokens, and what would fit.
    """
    sizes, counts = sizes_of(manifest), order.counts(sequences)
    for name, source in sorted(sources_of(data).items()):
        rows, size, cap = counts.get(name, 0), sizes.get(name), source.max_epochs
        if size is not None and cap is not None and rows > 1.001 * cap * size.rows + 1:
            raise _beyond(name, data, size, counts, cap)


def _taken(rows: int, size: Size | None, sequence_length: int) -> dict[str, float]:
    if size is None:
        return {"tokens": rows * sequence_length}
    return {"tokens": round(rows * size.tokens_per_row), "epochs": round(rows / size.rows, 4)}


def _beyond(name: str, data: Data, size: Size, counts: Mapping[str, int], cap: float) -> UmbelError:
    rows, about = counts[name], "" if size.is_exact else "about "
    epochs, held = rows / size.rows, f"{size.tokens:,.0f} tokens"
    read = f"{epochs:.2f} times, {rows * size.tokens_per_row:,.0f} tokens"
    fixes = [f"raise its max_epochs to {math.ceil(100 * epochs) / 100:.2f}"]
    if len(counts) > 1:
        fixes.insert(0, _lower(name, data, rows / sum(counts.values()), cap / epochs))
    if (steps := math.floor(100 * cap / epochs)) > 0:
        fixes.append(f"train for {steps}% of the steps")
    return UmbelError(
        f"holds {about}{held}, and the run would read it {about}{read}: max_epochs allows {cap:g}",
        where=key_of(data, name),
        fix=", or ".join(fixes),
    )


def _lower(name: str, data: Data, share: float, factor: float) -> str:
    """What takes a source from its share of the rows to ``factor`` of it."""
    if data.mixture.weights == "declared" and not data.phases:
        # A share grows more slowly than the weight behind it: odds are what is in proportion.
        weight = sources_of(data)[name].weight
        fitting = weight * factor * (1 - share) / (1 - factor * share)
        return f"lower its weight from {weight:g} to at most {_down(fitting)}"
    return f"lower its share of the rows from {share:.2%} to at most {_down(100 * factor * share)}%"


def _down(number: float) -> str:
    """Three digits, rounded down: what is offered must fit."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.floor(number / unit) * unit:.3g}"
