"""How much memory one forward and backward pass takes, found by running it on tensors without storage.

A formula such as that of Korthikanti et al. 2022 (arXiv:2205.05198) holds for one implementation of one
architecture. So the pass itself is rehearsed: fake tensors have shapes, dtypes and lifetimes but no numbers,
and every storage that comes and goes is counted. A second or so, on any machine, for a model of any size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedConfig

from base.errors import UmbelError
from configs.schema import Model
from configs.typed import build
from train.architecture import decoder_config
from train.loss import cross_entropy_sum
from train.masking import logits_of
from train.model import meta_model

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Bytes beside parameters and optimizer of one forward and backward pass on one process.

    Attributes:
        activations: kept by the forward pass for the backward pass.
        loss: what logits and loss add at their peak.
        working: what the rest of the backward pass adds at its peak, finished gradients left out.
        working_with_gradients: the same, where gradients are only allocated as they are finished.
    """

    activations: int
    loss: int
    working: int
    working_with_gradients: int


def rehearse(
    model: Model,
    micro_batch: int,
    sequence_length: int,
    *,
    dtype: torch.dtype,
    autocast: bool,
    cuda: bool,
    masked: bool = False,
) -> Rehearsal:
    """Rehearse a micro-batch of ``micro_batch`` × ``sequence_length`` tokens.

    Args:
        dtype: of the weights.
        autocast: whether the forward pass runs under bf16 autocast.
        cuda: count as CUDA's autocast computes, which keeps more operations in fp32 than the CPU's.
        masked: attention stays within documents: a mask is kept, which SDPA copies in each layer.
    """
    shape = json.dumps(dataclasses.asdict(model), sort_keys=True)
    try:
        # Flex attention keeps a block mask, next to nothing.
        explicit = masked and model.attention != "flex_attention"
        return _rehearse(shape, micro_batch, sequence_length, dtype, autocast, cuda, explicit)
    except UmbelError:
        raise
    except Exception as error:
        # An architecture may branch on numbers (experts) or call kernels of its own, which fake tensors lack.
        _log.warning(
            "%s cannot be rehearsed (%s): its memory is a rougher guess", model.arch, type(error).__name__
        )
        return formula(
            decoder_config(model), micro_batch, sequence_length, dtype, model.activation_checkpointing
        )


def formula(
    shape: PreTrainedConfig, micro_batch: int, sequence_length: int, dtype: torch.dtype, checkpointing: bool
) -> Rehearsal:
    """Korthikanti et al. 2022 (arXiv:2205.05198), equation 2: s·b·h·(34 + 5·a·s/h) bytes a layer in 16 bits.

    With checkpointing a layer keeps its input of 2·s·b·h bytes, and one layer at a time is recomputed. Logits
    and loss are at their peak three fp32 copies of the logits.
    """
    tokens, scale = micro_batch * sequence_length, dtype.itemsize / 2
    scores = 5 * shape.num_attention_heads * sequence_length
    layer = int(scale * tokens * (34 * shape.hidden_size + scores))
    kept = int(scale * tokens * 2 * shape.hidden_size) if checkpointing else layer
    working = layer if checkpointing else 0
    return Rehearsal(
        activations=shape.num_hidden_layers * kept,
        loss=12 * tokens * shape.vocab_size,
        working=working,
        working_with_gradients=working,
    )


@functools.lru_cache(maxsize=256)
def _rehearse(
    shape: str,
    micro_batch: int,
    sequence_length: int,
    dtype: torch.dtype,
    autocast: bool,
    cuda: bool,
    masked: bool,
) -> Rehearsal:
    meta = _meta(shape, cuda)
    with FakeTensorMode():
        model = _with_fake_tensors(meta, dtype)
        tokens = torch.zeros((micro_batch, sequence_length), dtype=torch.long)
        positions = torch.zeros_like(tokens) if masked else None

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return logits_of(model, tokens, positions)

        with Ledger(model) as ledger, CudaAutocast() if cuda else contextlib.nullcontext():
            return _account(ledger, forward, tokens)


def _account(ledger: Ledger, forward: Callable[[], torch.Tensor], labels: torch.Tensor) -> Rehearsal:
    logits = forward()
    forward_peak, kept = ledger.peak, ledger.now - logits.untyped_storage().nbytes()
    ledger.restart()
    loss_peaks: list[int] = []
    logits.register_hook(lambda _: loss_peaks.append(ledger.peak))
    loss = cross_entropy_sum(logits, labels)
    del logits  # as the engine does: nothing in the backward pass needs them
    loss.backward()
    loss_peak = max(loss_peaks[0], kept)
    return Rehearsal(
        activations=kept,
        loss=loss_peak - kept,
        working=max(forward_peak, ledger.peak_without_gradients, loss_peak) - loss_peak,
        working_with_gradients=max(forward_peak, ledger.peak, loss_peak) - loss_peak,
    )


def _meta(shape: str, cuda: bool) -> nn.Module:
    model = build(Model, json.loads(shape))
    # Flex attention is compiled, which fake tensors are not; it keeps what SDPA keeps.
    attention = "sdpa" if model.attention == "flex_attention" else model.attention
    made = meta_model(dataclasses.replace(model, attention=attention))
    if cuda and model.activation_checkpointing:
        # A backward pass suspends CudaAutocast, and what is recomputed in it needs it again.
        contexts = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), CudaAutocast())}
        made.activation_checkpointing_enable(contexts)
    return made


def _with_fake_tensors(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put fake CPU tensors in the place of meta ones, tied weights still tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                fake = torch.empty(parameter.shape, dtype=dtype)
                made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


class Ledger(TorchDispatchMode):
    """Counts the bytes of every storage made inside it, until it is freed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.peak_without_gradients = self.gradients = 0
        self.known: dict[int, int] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self.known[tensor.untyped_storage()._cdata] = 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._finished)

    def restart(self) -> None:
        """Forget the peaks, not what is alive."""
        self.peak = self.peak_without_gradients = self.now

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.now += self.known[key]
        self.peak = max(self.peak, self.now)
        self.peak_without_gradients = max(self.peak_without_gradients, self.now - self.gradients)

    def _free(self, key: int) -> None:
        self.now -= self.known.pop(key)

    def _finished(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.gradients += parameter.grad.untyped_storage().nbytes()


class CudaAutocast(TorchFunctionMode):
    """Runs in fp32 what CUDA's autocast runs in fp32 and the CPU's does not.

    https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32
    """

    OPERATIONS = frozenset(
        ("pow", "__pow__", "exp", "log", "rsqrt", "sum", "norm", "softplus", "softmax", "cumsum")
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in self.OPERATIONS and torch.is_autocast_enabled("cpu"):
            args = tree_map(_to_fp32, args)
        return func(*args, **(kwargs or {}))


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
