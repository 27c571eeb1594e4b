from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from base.errors import RunFailed
from configs.schema import Samples as SampleSettings
from data.stream import IGNORED, MicroBatch
from data.tokens.tokenizer import CHATML, TextTokenizer, train_tokenizer
from support.small_models import ALONE
from train.distributed import World
from train.engine import StepMetrics
from train.hooks.checkpoints import Checkpoints
from train.hooks.evaluation import AT_ONCE, Evaluation, held_out_losses
from train.hooks.metrics import Metrics
from train.hooks.samples import Samples
from train.loop import StepRecord
from train.position import Position


def at(step: int, loss: float = 1.0, grad_norm: float = 1.0) -> StepRecord:
    metrics = StepMetrics(torch.tensor(loss), torch.tensor(grad_norm))
    return StepRecord(Position(step, step * 4, step * 100), 100, 1e-3, metrics, 0.0, 0.0)


def due(step: int, *numbers: float) -> StepRecord:
    return dataclasses.replace(at(step, *numbers), save=True)


NEVER = cast(Any, SimpleNamespace(due=lambda *_: False))


def after(looks: int) -> Callable[[], bool]:
    """True from the ``looks``-th question on."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= looks


def one_of(rank: int, size: int) -> World:
    return dataclasses.replace(ALONE, rank=rank, size=size)


# Evaluation ---------------------------------------------------------------------------------------------


def held_out(rows: int, micro_batch: int) -> list[MicroBatch]:
    """Row r has r + 1 targets."""
    batches = []
    for first in range(0, rows, micro_batch):
        labels = np.full((min(micro_batch, rows - first), rows), IGNORED, np.int64)
        for index, row in enumerate(labels):
            row[: first + index + 1] = 7
        batches.append(MicroBatch(np.zeros_like(labels), labels, first, int((labels != IGNORED).sum())))
    return batches


class Scorer:
    """A model whose loss is 2 nats at every target, and which counts its forward passes."""

    def __init__(self) -> None:
        self.passes = 0

    def evaluate(self, batches: Any) -> tuple[float, int]:
        batches = list(batches)
        self.passes += len(batches)
        count = sum(batch.targets for batch in batches)
        assert count == sum(int((batch.labels != IGNORED).sum()) for batch in batches)
        return 2.0 * count, count


def stream(**rows: int) -> Any:
    return SimpleNamespace(
        prepared=SimpleNamespace(sources=list(rows)),
        held_out=lambda source, sequences, micro_batch: held_out(min(sequences, rows[source]), micro_batch),
    )


class Summing:
    """A world that notes what its processes hand in to be summed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.is_first, self.handed_in = rank, size, rank == 0, []

    def sum_floats(self, values: torch.Tensor) -> torch.Tensor:
        self.handed_in.append(values)
        return values


@given(rows=st.integers(0, 9), micro_batch=st.integers(1, 4), size=st.integers(1, 5))
def test_processes_share_the_held_out_rows_in_equally_many_passes(
    rows: int, micro_batch: int, size: int
) -> None:
    worlds, passes = [Summing(rank, size) for rank in range(size)], []
    for world in worlds:
        scorer = Scorer()
        held_out_losses(scorer, stream(a=rows), cast(World, world), 8, micro_batch)
        passes.append(scorer.passes)
    assert len(set(passes)) == 1
    shown = min(rows, 8)
    total = sum(world.handed_in[0] for world in worlds).tolist()
    assert total == [shown * (shown + 1), shown * (shown + 1) / 2]


def test_each_source_has_its_loss_and_one_without_rows_has_none() -> None:
    assert held_out_losses(Scorer(), stream(a=3, b=0, c=1), ALONE, 64, 2) == {"a": 2.0, "c": 2.0}


def test_evaluation_comes_every_n_steps_and_is_told_once() -> None:
    for rank, told in ((0, [2, 4]), (1, [])):
        heard: list[int] = []
        tell = lambda step, _, heard=heard: heard.append(step)  # noqa: E731
        hook = Evaluation(cast(Any, Scorer()), stream(a=3), one_of(rank, 1), 2, 64, 2, tell)
        for step in range(1, 6):
            hook.after_step(at(step))
        assert heard == told


@pytest.mark.parametrize(("every", "rows"), [(0, 3), (2, 0)])
def test_nothing_to_evaluate_is_nothing_to_tell(every: int, rows: int) -> None:
    hook = Evaluation(
        cast(Any, Scorer()), stream(a=rows), ALONE, every, 64, 2, lambda *told: pytest.fail(str(told))
    )
    hook.after_step(at(2))


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_an_evaluation_is_left_between_two_batches_and_not_recorded(looks: int) -> None:
    scorer, rows = Scorer(), 5 * AT_ONCE
    left = held_out_losses(scorer, stream(a=rows, b=rows), ALONE, rows, 1, after(looks))
    assert (left, scorer.passes) == ({}, (looks - 1) * AT_ONCE)
    told: list[Any] = []
    tell = lambda *facts: told.append(facts)  # noqa: E731
    Evaluation(cast(Any, Scorer()), stream(a=rows), ALONE, 2, rows, 1, tell, after(2)).after_step(at(2))
    assert told == []


def test_an_evaluation_in_parts_gives_the_same_numbers() -> None:
    rows = 3 * AT_ONCE + 1
    assert held_out_losses(Scorer(), stream(a=rows), ALONE, rows, 1) == {"a": 2.0}


# Samples ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["to be or not to be"], 300, chats=True)


class Script:
    """An engine that says the given ids one after the other, whatever it is shown, and notes what it saw."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.seen, self.model = ids, [], torch.nn.Linear(1, 1)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        assert not self.model.training
        self.seen.append(window[0].tolist())
        logits = torch.zeros(*window.shape, 300)
        logits[0, -1, self.ids[len(self.seen) - 1]] = 1.0
        return logits


def sample(
    engine: Script, tokenizer: TextTokenizer, prompt: str, **options: Any
) -> list[tuple[int, str, str]]:
    told: list[tuple[int, str, str]] = []
    world = options.pop("world", ALONE)
    length = options.pop("sequence_length", 64)
    hook = Samples(
        SampleSettings(every=2, prompts=[prompt], max_new_tokens=4),
        cast(Any, engine),
        tokenizer,
        world,
        length,
        lambda *fact: told.append(fact),
        **options,
    )
    for step in (1, 2, 3):
        hook.after_step(at(step))
    assert engine.model.training
    return told


def ids(text: str, tokenizer: TextTokenizer) -> list[int]:
    return list(tokenizer.backend.encode(text).ids)


def test_a_continuation_is_as_long_as_asked_and_told_by_rank_0(tokenizer: TextTokenizer) -> None:
    said = ids("abcdef", tokenizer)
    assert sample(Script(said), tokenizer, "to be") == [(2, "to be", tokenizer.decode(said[:4]))]
    assert sample(Script(said), tokenizer, "to be", world=one_of(1, 2)) == []


def test_it_stops_at_the_end_of_the_text(tokenizer: TextTokenizer) -> None:
    engine = Script([*ids("ab", tokenizer), tokenizer.eos_id, *ids("cd", tokenizer)])
    assert sample(engine, tokenizer, "to be") == [(2, "to be", "ab")]
    assert len(engine.seen) == 3


def test_an_empty_prompt_begins_a_document(tokenizer: TextTokenizer) -> None:
    engine = Script(ids("abcd", tokenizer))
    assert sample(engine, tokenizer, "") == [(2, "", "abcd")]
    assert engine.seen[0] == [tokenizer.eos_id]


def test_the_model_is_never_shown_more_than_its_sequence_length(tokenizer: TextTokenizer) -> None:
    engine = Script(ids("abcd", tokenizer))
    sample(engine, tokenizer, "or not or not", sequence_length=3)
    assert [len(window) for window in engine.seen] == [3, 3, 3, 3]
    assert engine.seen[0] == ids("or not or not", tokenizer)[-3:]
    assert engine.seen[1][-1] == engine.ids[0]


def test_a_sample_is_left_between_two_tokens_and_not_recorded(tokenizer: TextTokenizer) -> None:
    class Talker:
        model = torch.nn.Linear(1, 1)
        said = 0

        def forward(self, window: torch.Tensor) -> torch.Tensor:
            self.said += 1
            return torch.eye(300)[5].expand(*window.shape, 300)

    engine, told = Talker(), list[Any]()
    settings = SampleSettings(every=2, prompts=["to be", "or not"], max_new_tokens=40)
    hook = Samples(
        settings, cast(Any, engine), tokenizer, ALONE, 64, lambda *fact: told.append(fact), stopping=after(4)
    )
    hook.after_step(at(2))
    assert (told, engine.said) == ([], 3)
    assert engine.model.training


def test_a_run_on_chats_answers_its_prompts(tokenizer: TextTokenizer) -> None:
    chat = dataclasses.replace(tokenizer, chat_template=CHATML)
    end = tokenizer.backend.token_to_id("<|im_end|>")
    engine = Script([*ids("ab", tokenizer), end, 0, 0])
    assert sample(engine, chat, "be?", chats=True) == [(2, "be?", "ab")]
    shown = tokenizer.decode(engine.seen[0])
    assert shown == "<|im_start|>user\nbe?<|im_end|>\n<|im_start|>assistant\n"


def test_all_processes_take_the_token_of_the_first(tokenizer: TextTokenizer) -> None:
    """Else one could stop before another, which then waits for it in a collective forward pass."""

    class Second(World):
        def first(self, value: int) -> int:
            return tokenizer.eos_id

    engine = Script(ids("abcd", tokenizer))
    sample(engine, tokenizer, "to be", world=Second(1, 2, torch.device("cpu"), None))
    assert len(engine.seen) == 1


# Metrics and checkpoints --------------------------------------------------------------------------------


def metrics(tiny_config: Any, lines: list[dict[str, Any]]) -> Metrics:
    return Metrics(tiny_config, ALONE, [lines.extend], lambda _: None)


def test_a_line_for_each_step_and_soon_for_the_first(tiny_config: Any) -> None:
    lines: list[dict[str, Any]] = []
    tiny_config.tracker.log_every = 3
    hook = metrics(tiny_config, lines)
    shown = []
    for step in range(1, 6):
        hook.after_step(at(step, loss=step))
        shown.append(len(lines))
    assert shown == [1, 1, 3, 3, 3]
    hook.flush()
    assert [(line["step"], line["tokens"], line["loss"]) for line in lines] == [
        (step, step * 100, float(step)) for step in range(1, 6)
    ]


@pytest.mark.parametrize(
    ("loss", "grad_norm", "said"),
    [
        (float("nan"), 1.0, "step 3, rank 0: the loss is nan"),
        (1.0, float("inf"), "step 3: the gradient norm is not finite"),
    ],
)
def test_a_number_that_is_none_stops_the_run_before_it_is_saved(
    tiny_config: Any, loss: float, grad_norm: float, said: str
) -> None:
    lines: list[dict[str, Any]] = []
    tiny_config.tracker.log_every = 10
    hook = metrics(tiny_config, lines)
    saver = SimpleNamespace(save=lambda *_, **__: pytest.fail("saved"), poll=lambda: None, failures=0)
    checkpoints = Checkpoints(cast(Any, saver), NEVER, cast(Any, None), Position(), hook.flush)
    for record in (at(2), at(3, loss, grad_norm), at(4)):
        hook.after_step(record)
    with pytest.raises(RunFailed, match=said):
        checkpoints.after_step(due(4))
    assert [line["step"] for line in lines] == [2]


@pytest.mark.parametrize(
    ("saved", "said"), [(0, "no checkpoint was saved before: lower"), (2, "the checkpoint of step 2 is good")]
)
def test_a_failure_tells_what_is_saved(tiny_config: Any, saved: int, said: str) -> None:
    hook = Metrics(tiny_config, ALONE, [], lambda _: None, lambda: saved)
    hook.pending = [at(3, float("nan"))]
    with pytest.raises(RunFailed) as caught:
        hook.flush()
    assert str(caught.value.fix).startswith(said)


def test_a_position_is_saved_once() -> None:
    saved: list[tuple[int, bool]] = []

    def save(position: Position, _: object, *, last: bool) -> bool:
        saved.append((position.step, last))
        return True

    saver = SimpleNamespace(save=save, poll=lambda: None, drain=lambda: None, failures=0)
    checkpoints = Checkpoints(cast(Any, saver), NEVER, cast(Any, None), at(2).position, lambda: None)
    for record in (due(2), at(3), due(4)):
        checkpoints.after_step(record)
    checkpoints.finish()
    checkpoints.after_step(at(5))
    checkpoints.finish()
    assert saved == [(4, False), (5, True)]


def test_a_wish_to_save_makes_the_next_step_a_saved_one() -> None:
    wishes = iter([False, True, False])
    saver = SimpleNamespace(failures=0)
    unused = cast(Any, None)
    hook = Checkpoints(cast(Any, saver), NEVER, unused, Position(), unused, lambda: next(wishes))
    assert [hook.due(step) for step in (1, 2, 3)] == [False, True, False]


def test_what_was_not_saved_is_saved_at_the_end() -> None:
    saved: list[int] = []

    def busy(position: Position, _: object, *, last: bool) -> bool:
        if last:
            saved.append(position.step)
        return last

    saver = SimpleNamespace(save=busy, poll=lambda: None, drain=lambda: None, failures=0)
    checkpoints = Checkpoints(cast(Any, saver), NEVER, cast(Any, None), Position(), lambda: None)
    checkpoints.after_step(due(4))
    checkpoints.finish()
    assert saved == [4]


@pytest.mark.parametrize(("failures", "reasons"), [(1, []), (2, ["no checkpoint could be written"])])
def test_a_failed_save_is_tried_again_and_a_second_one_stops_the_run(
    failures: int, reasons: list[str]
) -> None:
    asked: list[str] = []
    saver = SimpleNamespace(poll=lambda: None, failures=failures)
    stop = SimpleNamespace(ask=asked.append)
    checkpoints = Checkpoints(cast(Any, saver), NEVER, cast(Any, stop), Position(), lambda: None)
    checkpoints.after_step(at(3))
    assert asked == reasons
    assert checkpoints.due(4)
    saver.failures = 0
    assert not checkpoints.due(4)
