"""What the sources weigh in each phase of a run: declared, or reckoned from their sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from base.errors import UmbelError
from configs.phases import phase_start
from configs.schema import Data
from data.manifest import Manifest
from data.order.sizes import Size, sizes_of
from data.sources import key_of, sources_of, weights_of

Weights = dict[str, float]

DIGITS = 12
"""Significant digits of a weight: no machine's last bit of arithmetic may move a row."""


def plan(data: Data, manifest: Manifest, sequences: int) -> list[tuple[int, Weights]]:
    """The first sequence of each phase, and the share of its rows that each source gives.

    Shares of a phase sum to 1; sources that give nothing are left out. ``data.phases`` and declared weights
    are shares of tokens or documents (``data.mixture.by``), computed ones of tokens; here they have become
    shares of rows.

    Args:
        sequences: of the whole run. UniMax shares out the tokens of the first phase.

    Raises:
        UmbelError: a source that is weighted but has no rows, a size that is needed but not known, or more
            tokens than UniMax's cap allows.
    """
    sizes = sizes_of(manifest)
    starts = [phase_start(phase, data.sequence_length) for phase in data.phases]
    until = min(sequences, *starts) if starts else sequences
    if data.mixture.weights == "declared":
        first = _row_weights(weights_of(data), data.mixture.by, data, sizes)
    else:
        known = {name: _known(name, data, sizes, "data.mixture.weights") for name in sorted(weights_of(data))}
        shares = _computed(data, known, float(until * data.sequence_length))
        first = _row_weights(shares, "tokens", data, sizes)
    later = [_row_weights(phase.weights, data.mixture.by, data, sizes) for phase in data.phases]
    return list(zip([0, *starts], [first, *later], strict=True))


def proportional(sizes: Mapping[str, float]) -> Weights:
    """Each source as often as every other: weights are sizes."""
    return temperature(sizes, 1.0)


def temperature(sizes: Mapping[str, float], t: float) -> Weights:
    """size^(1/T): 1 is proportional, and the larger T, the more equal (mT5, Xue et al., arXiv:2010.11934)."""
    largest = max(sizes.values())
    return normalised({name: (size / largest) ** (1 / t) for name, size in sizes.items()})


def unimax(caps: Mapping[str, float], budget: float) -> Weights:
    """As equal as the caps on repeats allow (Chung et al. 2023, arXiv:2304.09151, algorithm 1).

    Args:
        caps: tokens that may be read of each source: its size times the epochs allowed.
        budget: tokens that will be read in all, at most the sum of the caps.
    """
    shares: Weights = {}
    left = budget
    for index, name in enumerate(sorted(caps, key=lambda name: (caps[name], name))):
        shares[name] = min(caps[name], left / (len(caps) - index))
        left -= shares[name]
    return normalised(shares)


def normalised(weights: Mapping[str, float]) -> Weights:
    """The same shares with sum 1, by name; those of 0 left out. Shares that sum to 1 stay what they are."""
    scaled = dict(sorted(weights.items()))
    if not math.isclose(sum(scaled.values()), 1, rel_tol=1e-9):
        # Divided twice, for the sum of the largest floats is infinite.
        scaled = {name: weight / max(weights.values()) for name, weight in scaled.items()}
        total = math.fsum(scaled.values())
        scaled = {name: weight / total for name, weight in scaled.items()}
    shares = {name: float(f"{weight:.{DIGITS}g}") for name, weight in scaled.items()}
    return {name: share for name, share in shares.items() if share > 0}


def _computed(data: Data, sizes: Mapping[str, Size], budget: float) -> Weights:
    tokens = {name: float(size.tokens) for name, size in sizes.items()}
    mixture = data.mixture
    if mixture.weights == "proportional":
        return proportional(tokens)
    if mixture.weights == "temperature":
        return temperature(tokens, mixture.temperature)
    own = {name: source.max_epochs for name, source in sources_of(data).items()}
    caps = {name: size * min(mixture.max_epochs, own[name] or math.inf) for name, size in tokens.items()}
    most = math.fsum(caps.values())
    if budget > most:
        raise UmbelError(
            f"the run would read {budget:,.0f} tokens, and the caps of all sources allow {most:,.0f}",
            where="data.mixture.max_epochs",
            fix=f"raise it to {_up(mixture.max_epochs * budget / most)}, add data, or lower schedule.steps",
        )
    return unimax(caps, budget)


def _row_weights(weights: Mapping[str, float], by: str, data: Data, sizes: Mapping[str, Size]) -> Weights:
    """Shares of tokens or of documents as shares of rows: a source whose rows hold more needs fewer."""
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    if data.mode == "streaming" and by == _told_by_rows(data):
        return normalised(weights)  # No sizes are needed: every row holds as much.
    known = {name: _known(name, data, sizes, "data.mixture.by") for name in weights}
    return normalised({name: weight / _in_a_row(known[name], by) for name, weight in weights.items()})


def _told_by_rows(data: Data) -> str:
    """What every row holds as much of: tokens where it is full, samples where it is one document."""
    return "samples" if data.packing == "none" else "tokens"


def _in_a_row(size: Size, by: str) -> float:
    return (size.tokens if by == "tokens" else size.documents) / size.rows


def _known(name: str, data: Data, sizes: Mapping[str, Size], where: str) -> Size:
    if name in sizes:
        return sizes[name]
    if data.mode == "prepared":
        raise UmbelError("has a weight, but no text to train on", where=key_of(data, name))
    setting = data.mixture.by if where.endswith("by") else data.mixture.weights
    raise UmbelError(
        f"{setting} needs to know how much source {name} holds, and its beginning tells nothing",
        where=where,
        fix=f"set data.mode=prepared, or declare weights by {_told_by_rows(data)}",
    )


def _up(number: float) -> str:
    """A number rounded up to three digits: what it is compared with must fit below it."""
    step = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / step) * step:.4g}"
