"""The one file that touches DeepSpeed's inner structures, written against 0.19.

Three optimizers hold ZeRO's state, all as flat fp32 partitions wrapped around a torch optimizer:
`DeepSpeedZeroOptimizer` (stages 1 and 2), `BF16_Optimizer` (stage 1 in bf16 with fp32 accumulation) and
`DeepSpeedZeroOptimizer_Stage3`. What is frozen is in none of them: stages 1 and 2 leave it whole on every
process, stage 3 partitions it like the rest. Upgrades are guarded by tests/train/test_state.py.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from train.state import FROZEN, LossScaler, Slice, adam_state, frozen_share, part

# deepspeed/runtime/fp16/loss_scaler.py, `DynamicLossScaler`: what changes while it trains.
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def zero_state(zero: Any, names: dict[int, str]) -> ZeroState:
    """The state of a ZeRO optimizer; ``names`` maps ``id(parameter)`` to its name."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return Stage3State(zero, names)
    return Stage12State(zero, names)


class ZeroState(abc.ABC):
    """State of one process's partition."""

    def __init__(self, zero: Any, names: dict[int, str]) -> None:
        self.zero, self.names = zero, names
        # Its groups hold what trains; its names are those of the whole model.
        self.frozen = [parameter for parameter in zero.param_names if not parameter.requires_grad]

    def group_steps(self) -> list[int]:
        steps = {group: int(self._adam(flat)["step"]) for group, flat in self._flats()}
        return [steps[group] for group in sorted(steps)]

    def loss_scaler(self) -> LossScaler | None:
        # Without fp16 it is a constant, and BF16_Optimizer has none.
        scaler = getattr(self.zero, "loss_scaler", None)
        return {name: getattr(scaler, name) for name in _SCALER} if scaler and scaler.dynamic else None

    def loaded(self, group_steps: list[int], loss_scaler: LossScaler | None = None) -> None:
        for group, flat in self._flats():
            self._adam(flat)["step"].fill_(group_steps[group])
        if loss_scaler and self.loss_scaler():
            for name in _SCALER:
                setattr(self.zero.loss_scaler, name, loss_scaler[name])
        self._publish()

    def _adam(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return adam_state(self.zero.optimizer, flat)

    @abc.abstractmethod
    def owned(self) -> Iterator[Slice]: ...

    @abc.abstractmethod
    def held(self) -> Iterator[Slice]: ...

    @abc.abstractmethod
    def _flats(self) -> list[tuple[int, torch.Tensor]]:
        """The flat fp32 partitions, each with the index of its parameter group."""

    @abc.abstractmethod
    def _publish(self) -> None:
        """Bring the model's own weights in line with the master weights, on all processes."""


class Stage12State(ZeroState):
    """Stages 1 and 2: each parameter group is one flat tensor, cut into equal partitions."""

    def owned(self) -> Iterator[Slice]:
        group = self.zero.dp_process_group
        yield from self._partition()
        yield from self._frozen(dist.get_rank(group), dist.get_world_size(group))

    def held(self) -> Iterator[Slice]:
        yield from self._partition()
        yield from self._frozen(0, 1)

    def _partition(self) -> Iterator[Slice]:
        groups = self.zero.bit16_groups if hasattr(self.zero, "bit16_groups") else self.zero.bf16_groups
        for (_, flat), group in zip(self._flats(), groups, strict=True):
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    where, numel = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                    views = part(flat, self._adam(flat), where, numel)
                    yield Slice(self.names[id(parameter)], mapping.lp_fragment_address.start, views)

    def _frozen(self, rank: int, world_size: int) -> Iterator[Slice]:
        for parameter in self.frozen:
            yield from frozen_share(self.names[id(parameter)], parameter, rank, world_size)

    def _flats(self) -> list[tuple[int, torch.Tensor]]:
        if hasattr(self.zero, "single_partition_of_fp32_groups"):
            return list(enumerate(self.zero.single_partition_of_fp32_groups))
        return list(enumerate(self.zero.fp32_groups_flat_partition))

    def _publish(self) -> None:
        self.zero.update_lp_params()


class Stage3State(ZeroState):
    """Stage 3: each parameter is cut into equal partitions; a process's partitions lie in flat sub-groups."""

    def owned(self) -> Iterator[Slice]:
        for index, (_, flat) in enumerate(self._flats()):
            rank = self.zero._get_sub_group_partition_rank(index)
            for parameter in self.zero.fp16_groups[index]:
                _, where, partition = self.zero.grad_position[self.zero.get_param_id(parameter)]
                start, numel = _unpadded(parameter, rank, partition)
                if numel > 0:
                    views = part(flat, self._adam(flat), where, numel)
                    yield Slice(self.names[id(parameter)], start, views)
        for parameter in self.frozen:
            partition = parameter.ds_tensor
            start, numel = _unpadded(parameter, dist.get_rank(parameter.ds_process_group), partition.numel())
            if numel > 0:
                yield Slice(
                    self.names[id(parameter)], start, {FROZEN: partition.detach().narrow(0, 0, numel)}
                )

    def held(self) -> Iterator[Slice]:
        """A partition is held by the process that owns it, and by no other."""
        return self.owned()

    def _flats(self) -> list[tuple[int, torch.Tensor]]:
        flats = self.zero.fp32_partitioned_groups_flat
        return [(self.zero.sub_group_to_group_id[index], flat) for index, flat in enumerate(flats)]

    def _publish(self) -> None:
        for index, (_, flat) in enumerate(self._flats()):
            self.zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            self.zero._unflatten_partitioned_parameters(index)
        # What is gathered holds the old numbers, and gathering is a no-op until it is let go: between steps
        # that is small parameters, after an evaluation all of them.
        for parameter in self.zero.param_names:
            parameter.partition()
        self.zero.checkpoint_event_epilogue()


def _unpadded(parameter: Any, rank: int, partition: int) -> tuple[int, int]:
    """Start and length of a partition without padding: what lies beyond the parameter is not state."""
    start = rank * partition
    return start, min(partition, parameter.ds_numel - start)
