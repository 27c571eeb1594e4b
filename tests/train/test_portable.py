"""Between live tensors and stored bytes: what is stored, and how it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from base.errors import UmbelError
from checkpoint.reader import StateReader
from configs.compose import compose
from support.engines import save
from support.runs import TINY
from support.small_models import ALONE
from train.engine import Engine
from train.facts import restore_optimizer
from train.portable import fragments, host_bytes, read_into, read_state, small_fragments, stored_shapes
from train.torch_engine import TorchEngine
from train.weights import fill

LORA = ("data.path=corpus.jsonl", "++model.lora.r=2")


def engine(precision: str = "fp32", seed: int = 1) -> Engine:
    """A quarter of its weights frozen, the rest adapters: from scratch, so no base gives what is frozen."""
    return TorchEngine(compose([*TINY, *LORA, f"run.seed={seed}", f"model.precision={precision}"]), ALONE)


def frozen_weights(live: Engine) -> dict[str, torch.Tensor]:
    return {name: one for name, one in live.model.named_parameters() if not one.requires_grad}


def test_frozen_weights_are_written_only_where_asked_for() -> None:
    live = engine()
    everything = {one.key for one in fragments(live, with_frozen=True)}
    trained = {one.key for one in fragments(live, with_frozen=False)}
    assert everything - trained == {f"{name}|frozen" for name in frozen_weights(live)}
    assert {key.partition("|")[0] for key in trained} == stored_shapes(live.model, with_frozen=False).keys()
    assert {key.partition("|")[0] for key in everything} == stored_shapes(live.model, with_frozen=True).keys()


def test_frozen_weights_come_back_over_those_of_another_seed(tmp_path: Path) -> None:
    saved, fresh = engine(seed=1), engine(seed=2)
    wanted = {name: one.clone() for name, one in saved.model.named_parameters()}
    assert not all(one.equal(wanted[name]) for name, one in frozen_weights(fresh).items())
    with StateReader(save(saved, tmp_path)) as reader:
        read_state(reader, fresh)
    restore_optimizer(fresh, reader.manifest)
    assert all(one.equal(wanted[name]) for name, one in fresh.model.named_parameters())


def test_a_model_without_its_engine_gets_its_frozen_weights_too(tmp_path: Path) -> None:
    saved, other = engine("bf16", seed=1), engine(seed=2).model
    with StateReader(save(saved, tmp_path)) as reader, torch.no_grad():
        fill(other, reader)
    wanted = dict(saved.model.named_parameters())
    assert all(one.equal(wanted[name]) for name, one in other.named_parameters())


def test_what_is_not_stored_stays_as_it_is() -> None:
    live = engine()
    before = {name: one.clone() for name, one in frozen_weights(live).items()}

    class Trained:
        def __init__(self) -> None:
            self.manifest = {"parameters": stored_shapes(live.model, with_frozen=False)}

        def read(self, name: str, kind: str, start: int, stop: int):
            return torch.full((stop - start,), 0.5).view(torch.uint8).numpy()

        def dtype(self, name: str, kind: str) -> str:
            return "F32"

    read_state(Trained(), live)
    assert all(one.equal(before[name]) for name, one in frozen_weights(live).items())
    assert all((one == 0.5).all() for one in live.model.parameters() if one.requires_grad)


def test_weights_are_read_when_they_are_written_and_buffers_at_once() -> None:
    live = engine()
    live.model.register_buffer("seen", torch.arange(3))
    one, (seen,) = next(fragments(live, with_frozen=True)), small_fragments(live)
    with torch.no_grad():
        live.model.get_parameter(one.parameter).fill_(0.5)
        live.model.get_buffer("seen").fill_(9)
    assert torch.frombuffer(bytearray(one.data()), dtype=torch.float32).eq(0.5).all()
    assert torch.frombuffer(bytearray(seen.data), dtype=torch.int64).tolist() == [0, 1, 2]


# Dtypes --------------------------------------------------------------------------------------------------


class Stored:
    """A reader that holds one tensor, stored in its own dtype."""

    folder = Path("step-00000001")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def read(self, name: str, kind: str, start: int, stop: int):
        return torch.tensor(host_bytes(self.tensor[start:stop].clone()), dtype=torch.uint8).numpy()

    def dtype(self, name: str, kind: str) -> str:
        return {torch.float32: "F32", torch.bfloat16: "BF16"}[self.tensor.dtype]


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_frozen_weights_of_bf16_runs_are_exact_in_either_dtype(
    stored: torch.dtype, held: torch.dtype
) -> None:
    """One engine holds them in bf16, another in fp32: each reads what the other stored, to the bit."""
    numbers = torch.cat([one.detach().view(-1) for one in frozen_weights(engine("bf16")).values()])
    assert numbers.bfloat16().float().equal(numbers), "every engine starts from weights that bf16 holds"
    target = torch.zeros(len(numbers) - 3, dtype=held)
    read_into(Stored(numbers.to(stored)), "weight", "frozen", 3, target)
    assert target.float().equal(numbers[3:])


def test_numbers_that_would_be_rounded_are_refused() -> None:
    target = torch.zeros(2, dtype=torch.bfloat16)
    with pytest.raises(UmbelError, match="holds numbers of weight that bfloat16 rounds"):
        read_into(Stored(torch.tensor([0.5, 0.1])), "weight", "frozen", 0, target)
