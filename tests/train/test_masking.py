"""Attention within documents: none reaches another, and training is as if each were alone."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import Lora, Model
from data.stream import MicroBatch
from support.curves import GLOBAL_BATCH, LENGTH, case_config, curves, packed_batch
from support.processes import run_workers
from support.small_models import ALONE
from train.engine import build_engine
from train.evaluate import PlainScorer
from train.masking import attention_over, document_numbers, logits_of
from train.model import build_model

STEPS = 12
LLAMA = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,  # from 0.02 attention would weigh too little to be missed
}


@given(st.lists(st.lists(st.integers(1, 9), min_size=1), min_size=1, max_size=4))
def test_documents_are_numbered_by_their_positions(rows: list[list[int]]) -> None:
    width = max(map(sum, rows))
    positions = torch.empty(len(rows), width, dtype=torch.long)
    expected = torch.empty_like(positions)
    for row, lengths in enumerate(rows):
        lengths[-1] += width - sum(lengths)  # padding goes on counting
        positions[row] = torch.cat([torch.arange(length) for length in lengths])
        expected[row] = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    assert document_numbers(positions).equal(expected)


class Reads(TorchDispatchMode):
    """Notes operations whose result goes to the host: on a device each would wait for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(
            name in str(func) for name in ("_local_scalar_dense", "is_nonzero", "nonzero", "_to_copy.cpu")
        ):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [False, True])
def test_a_forward_pass_never_reads_the_device(masked: bool) -> None:
    model = build_model(Model(arch="llama", config=LLAMA), 0)
    ids = torch.zeros(2, 8, dtype=torch.long)
    positions = (torch.arange(8) % 5).expand(2, -1) if masked else None
    with Reads() as reads:
        logits_of(model, ids, positions)
    assert reads.seen == []
    with Reads() as reads:
        model(input_ids=ids, position_ids=positions)
    assert reads.seen, "Transformers' own search must read, or the test shows nothing"


def test_what_transformers_does_is_left_as_it_was() -> None:
    from transformers import masking_utils

    search = masking_utils.find_packed_sequence_indices
    with pytest.raises(ZeroDivisionError), attention_over(torch.zeros(1, 1)):
        raise ZeroDivisionError
    assert masking_utils.find_packed_sequence_indices is search


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "way", ["plain", "checkpointing", "adapters", "bf16", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_no_gradient_crosses_a_boundary(way: str, attention: Any) -> None:
    """Also where layers are computed again in the backward pass, long after the mask was made."""
    lora = Lora(r=2) if way == "adapters" else None
    shape = Model(arch="llama", config=LLAMA, attention=attention, lora=lora)
    shape.activation_checkpointing = way == "checkpointing"
    model = build_model(shape, 0)
    if way == "compile":
        model.compile()
    first, second = torch.arange(0, 7), torch.arange(10, 19)
    ids = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    embedding = model.get_input_embeddings().weight.requires_grad_()
    for where, reaches in ((positions, False), (None, True)):
        embedding.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
            logits = logits_of(model, ids, where)
        logits[0, 7:].float().square().sum().backward()
        assert embedding.grad is not None
        assert bool(embedding.grad[second].any())
        assert bool(embedding.grad[first].any()) == reaches


def test_a_document_counts_the_same_in_evaluation_wherever_it_stands(tmp_path: Path) -> None:
    config = case_config(str(tmp_path), ["llama", "parallelism=single", "data.intra_document_mask=true"])
    engine = build_engine(config, ALONE, 4)
    scorer = PlainScorer(SimpleNamespace(model=engine.model, config=config), torch.device("cpu"))
    inputs, labels, positions = packed_batch(1)
    alone_ids, alone_labels = unpacked(1)
    targets = int((labels != -100).sum())
    packed = [MicroBatch(inputs, labels, 0, targets, positions)]
    alone = [MicroBatch(alone_ids.numpy(), alone_labels.numpy(), 0, targets)]
    expected = engine.evaluate(alone)
    assert engine.evaluate(packed) == pytest.approx(expected, rel=1e-6)
    assert scorer.evaluate(packed) == pytest.approx(expected, rel=1e-6)
    spread = [MicroBatch(inputs, labels, 0, targets)]
    assert engine.evaluate(spread)[0] != pytest.approx(expected[0], rel=1e-6)


# A whole training curve --------------------------------------------------------------------------------


def unpacked(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The documents of `packed_batch`, one a row, padded: inputs and labels [documents, LENGTH]."""
    inputs, labels, positions = packed_batch(step)
    rows = []
    for row in range(GLOBAL_BATCH):
        cuts = [*np.flatnonzero(positions[row] == 0), LENGTH]
        rows += [(row, slice(start, end)) for start, end in itertools.pairwise(cuts)]
    ids, targets = torch.zeros(len(rows), LENGTH, dtype=torch.long), torch.full((len(rows), LENGTH), -100)
    for index, (row, cut) in enumerate(rows):
        ids[index, : cut.stop - cut.start] = torch.from_numpy(inputs[row, cut])
        targets[index, : cut.stop - cut.start] = torch.from_numpy(labels[row, cut])
    return ids, targets


def plain_loop(folder: Path) -> list[list[float]]:
    """[loss, grad_norm] of each step over unpacked documents, in nothing but PyTorch and Transformers."""
    config = case_config(str(folder), ["llama"])
    model = build_model(config.model, config.run.seed)
    weights = [[], []]
    for name, parameter in model.named_parameters():
        weights["norm" in name].append(parameter)
    decays = [
        {"params": group, "weight_decay": decay} for group, decay in zip(weights, (0.1, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(decays, betas=(0.9, 0.95), eps=1e-8)
    curve = []
    for step in range(1, STEPS + 1):
        decay = 0.5 * (1 + math.cos(math.pi * (step - 5) / 45))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (step / 5 if step <= 5 else 0.1 + 0.9 * decay)
        ids, labels = unpacked(step)
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        curve.append([loss.item(), norm.item()])
    return curve


def case(stage: str, *more: str) -> list[str]:
    batch = ("parallelism.processes=null", "parallelism.micro_batch=2")
    return ["llama", "data.intra_document_mask=true", f"parallelism={stage}", *batch, *more]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_packed_documents_train_as_if_each_were_alone(tmp_path: Path, world_size: int) -> None:
    """Every ZeRO stage, with activation checkpointing and compiled, against a loop over padded documents."""
    expected = plain_loop(tmp_path)
    assert expected[-1][0] < 0.95 * expected[0][0], "the plain loop must learn, or the test shows nothing"
    asked = [case(stage) for stage in ("ddp", "zero1", "zero2", "zero3")]
    asked += [case("zero3", "model.activation_checkpointing=true"), case("ddp", "model.compile=true")]
    asked += [case("zero3", "model.precision=bf16"), case("ddp", "data.intra_document_mask=false")]
    *found, bf16, other = run_workers(
        world_size, curves, str(tmp_path), asked, STEPS, timeout=400, gloo=False
    )[0]
    for overrides, curve in zip(asked, found, strict=False):
        for step, (ours, plain) in enumerate(zip(curve, expected, strict=True), 1):
            assert ours[0] == pytest.approx(plain[0], rel=1e-5), f"loss at step {step} of {overrides}"
            assert ours[1] == pytest.approx(plain[1], rel=1e-3), f"grad_norm at step {step} of {overrides}"
    for (loss, _), (plain_loss, _) in zip(bf16, expected, strict=True):
        assert loss == pytest.approx(plain_loss, rel=1e-2)
    assert other[-1][0] != pytest.approx(expected[-1][0], rel=1e-5), "other targets: the curve must differ"
