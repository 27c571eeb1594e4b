"""A run cut into segments on any topology sees what an uninterrupted run on one process sees.

In the spirit of the outside measure: tokens tell (source, document, offset), the state passes through JSON
between processes, filters, phases, a skipped range and a batch ramp are on.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.schema import RunConfig
from data.micro_batch import IGNORED
from data.prepare import prepare_run
from data.stream import BatchStream
from data.tokens.tokenizer import END_OF_TEXT
from support.elastic import (
    LENGTH,
    SIZES,
    WORLDS,
    Segment,
    elastic_config,
    in_process,
    read_segment,
    write_sources,
)

MODES = ("prepared", "streaming")
STEPS = 40
EXAMPLES = int(os.environ.get("ELASTIC_EXAMPLES", "4"))
"""Runs cut at random, for each mode; `make soak` asks for more."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    write_sources(folder)
    return folder


@pytest.fixture(scope="module")
def references(corpus: Path) -> dict[str, list[list[list[int]]]]:
    """What each mode shows when nothing interrupts it."""
    whole = Segment(STEPS, 1, 0, 1)
    return {mode: read_segment(elastic_config(corpus, mode), 0, None, whole)[0] for mode in MODES}


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """A run of at least three resumes."""
    cuts = sorted(draw(st.sets(st.integers(1, STEPS - 1), min_size=3, max_size=5)))
    made = []
    for first, last in zip([0, *cuts], [*cuts, STEPS], strict=True):
        world_size = draw(st.sampled_from(WORLDS))
        # A rank's processes are many; those of two dozen ranks would not fit a test machine.
        workers = draw(st.sampled_from((0, 1, 2))) if world_size <= 2 else 0
        sizes = [size for size in (1, 2, 3, 4, 6, 8, 12, 24) if 24 % (world_size * size) == 0]
        made.append(Segment(last - first, world_size, workers, draw(st.sampled_from(sizes))))
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_any_topology_goes_on_with_exactly_the_next_token(
    corpus: Path, references: dict[str, list[list[list[int]]]], mode: str
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(segments())
    def run(drawn: list[Segment]) -> None:
        config, done, cursors = elastic_config(corpus, mode), 0, None
        for segment in drawn:
            steps, cursors = in_process(config, done, cursors, segment)
            assert steps == references[mode][done : done + segment.steps], f"{segment} after {done} steps"
            done += segment.steps

    run()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", [2, 8, 24])
def test_every_world_size_sees_the_same(
    corpus: Path, references: dict[str, list[list[list[int]]]], mode: str, world_size: int
) -> None:
    config = elastic_config(corpus, mode)
    first, cursors = read_segment(config, 0, None, Segment(9, world_size, 0, 1))
    second, _ = read_segment(config, 9, cursors, Segment(STEPS - 9, 3, 0, 4))
    assert first + second == references[mode]


@pytest.mark.parametrize("mode", MODES)
def test_each_token_of_a_document_once_an_epoch(corpus: Path, mode: str) -> None:
    """Without a skipped range, and over one lane: there an epoch has a begin and an end."""
    plain = ("data.skip=[]", "data.phases=[]", "schedule.batch_ramp=null", "schedule.global_batch=1")
    config = elastic_config(corpus, mode, *plain, "schedule.steps=2500")
    rows, _ = read_segment(config, 0, None, Segment(2500, 1, 0, 1))
    words = vocabulary(config)
    for source in SIZES:
        learned = [word for row in rows for word in targets(row[0], words) if word.startswith(source)]
        counts = Counter(learned)
        # Whatever point of its epoch a source has reached, no token is ahead of another by more than one.
        assert max(counts.values()) - min(counts.values()) <= 1, source
        assert min(counts.values()) >= 2, "the test must see several epochs"


@pytest.mark.parametrize("mode", MODES)
def test_filters_phases_and_weights_hold(corpus: Path, references: Any, mode: str) -> None:
    config = elastic_config(corpus, mode)
    words = vocabulary(config)
    steps = [Counter(source_of(row, words) for row in step) for step in references[mode]]
    assert "large" not in sum(steps[25:], Counter()), "the second phase has no share for it"
    before = sum(steps[:10], Counter())
    total = sum(before.values())
    for source, weight in (("large", 0.5), ("middle", 0.35), ("small", 0.15)):
        # A skipped range and the round that is under way may each hold a source's odd rows.
        assert abs(before[source] - weight * total) <= 3 + 48 / 4
    first = {word for step in references[mode] for row in step for word in targets(row, words)}
    kept = {word.split(":")[1] for word in first if word.startswith("large")}
    assert len(kept) < 0.9 * SIZES["large"], "a third of the documents is not French"


@pytest.mark.parametrize("mode", MODES)
def test_the_skipped_range_is_what_is_missing(corpus: Path, mode: str) -> None:
    """Without phases: those begin at a number of tokens seen, which skipped ones are not."""

    def flat(*overrides: str) -> list[list[int]]:
        config = elastic_config(corpus, mode, "data.phases=[]", *overrides)
        steps, _ = read_segment(config, 0, None, Segment(STEPS, 1, 0, 1))
        return [row for step in steps for row in step]

    whole, shown = flat("data.skip=[]"), flat()
    assert whole[:480] + whole[576:] == shown[: len(whole) - 96]


def vocabulary(config: RunConfig) -> list[str]:
    backend = prepare_run(config).tokenizer.backend
    return [backend.id_to_token(index) for index in range(backend.get_vocab_size())]


def targets(row: list[int], words: list[str]) -> list[str]:
    return [words[label] for label in row[LENGTH:] if label not in (IGNORED, 0)]


def source_of(row: list[int], words: list[str]) -> str:
    return next(words[token] for token in row[:LENGTH] if words[token] != END_OF_TEXT).split(":")[0]


def test_the_reference_is_no_accident(corpus: Path) -> None:
    """Another seed is another order, and the order is not that of the files."""
    config = elastic_config(corpus, "streaming", "run.seed=99")
    stream = BatchStream(prepare_run(config), config)
    other = BatchStream(stream.prepared, elastic_config(corpus, "streaming"))
    picks = [one.order.picks(np.arange(200)) for one in (stream, other)]
    assert not np.array_equal(picks[0], picks[1])
