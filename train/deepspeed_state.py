"""The one file that touches DeepSpeed's inner structures, written against 0.19.

Three optimizers hold ZeRO's state, all as flat fp32 partitions wrapped around a torch optimizer:
`DeepSpeedZeroOptimizer` (stages 1 and 2), `BF16_Optimizer` (stage 1 in bf16 with fp32 accumulation) and
`DeepSpeedZeroOptimizer_Stage3`. Upgrades are guarded by tests/train/test_state.py.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import torch

from train.state import Slice, adam_state, part


def zero_state(zero: Any, names: dict[int, str]) -> ZeroState:
    """The state of a ZeRO optimizer; ``names`` maps ``id(parameter)`` to its name."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return Stage3State(zero, names)
    return Stage12State(zero, names)


class ZeroState(abc.ABC):
    """State of one process's partition."""

    def __init__(self, zero: Any, names: dict[int, str]) -> None:
        self.zero, self.names = zero, names

    def held(self) -> Iterator[Slice]:
        """A partition is held by the process that owns it, and by no other."""
        return self.owned()

    def group_steps(self) -> list[int]:
        steps = {group: int(self._adam(flat)["step"]) for group, flat in self._flats()}
        return [steps[group] for group in sorted(steps)]

    def loaded(self, group_steps: list[int]) -> None:
        for group, flat in self._flats():
            self._adam(flat)["step"].fill_(group_steps[group])
        self._publish()

    def _adam(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return adam_state(self.zero.optimizer, flat)

    @abc.abstractmethod
    def owned(self) -> Iterator[Slice]: ...

    @abc.abstractmethod
    def _flats(self) -> list[tuple[int, torch.Tensor]]:
        """The flat fp32 partitions, each with the index of its parameter group."""

    @abc.abstractmethod
    def _publish(self) -> None:
        """Bring the model's own weights in line with the master weights, on all processes."""


class Stage12State(ZeroState):
    """Stages 1 and 2: each parameter group is one flat tensor, cut into equal partitions."""

    def owned(self) -> Iterator[Slice]:
        groups = self.zero.bit16_groups if hasattr(self.zero, "bit16_groups") else self.zero.bf16_groups
        for (_, flat), group in zip(self._flats(), groups, strict=True):
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    where, numel = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                    views = part(flat, self._adam(flat), where, numel)
                    yield Slice(self.names[id(parameter)], mapping.lp_fragment_address.start, views)

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
                start = rank * partition
                # The last partitions are padded: what lies beyond the parameter is not state.
                numel = min(partition, parameter.ds_numel - start)
                if numel > 0:
                    views = part(flat, self._adam(flat), where, numel)
                    yield Slice(self.names[id(parameter)], start, views)

    def _flats(self) -> list[tuple[int, torch.Tensor]]:
        flats = self.zero.fp32_partitioned_groups_flat
        return [(self.zero.sub_group_to_group_id[index], flat) for index, flat in enumerate(flats)]

    def _publish(self) -> None:
        for index, (_, flat) in enumerate(self._flats()):
            self.zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            self.zero._unflatten_partitioned_parameters(index)
        # Small parameters stay gathered between steps; gathering is a no-op unless they are let go first.
        for parameter in self.zero.persistent_parameters:
            parameter.partition()
        self.zero.checkpoint_event_epilogue()
