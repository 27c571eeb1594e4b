"""torch.distributed.checkpoint's `async_save` with its `DefaultStager`, on plain PyTorch or FSDP2."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from configs.schema import RunConfig
from savers import Bench
from train.distributed import World
from train.engine import Engine, adamw, build_engine
from train.loop import StepRecord
from train.model import build_model
from train.torch_engine import TorchEngine


class Sharded(TorchEngine):
    """The worker's plain engine on `fully_shard`: what this library is made for."""

    def __init__(self, config: RunConfig, world: World) -> None:
        Engine.__init__(self, config, world)
        self.model = build_model(config.model, config.run.seed).to(world.device)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for blocks in [module for module in self.model.modules() if isinstance(module, torch.nn.ModuleList)]:
            for block in blocks:
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = adamw(self.model, config.optimizer)
        self.trainable = list(self.model.parameters())
        self.replica = self.model

    def update(self) -> torch.Tensor:
        norm: Any = super().update()
        return norm.full_tensor()


class Threaded:
    """Stages with the training held (on CUDA: beside it), writes and fsyncs in a thread."""

    beside = True
    overrides: tuple[str, ...] = ("parallelism.engine=torch", "parallelism.zero_stage=0")
    requires: tuple[str, ...] = ("torch",)
    kind = AsyncCheckpointerType.THREAD
    staged_beside = False
    """Stage in a thread also on the CPU; its documentation promises that for CUDA alone."""

    @staticmethod
    def build(config: RunConfig, world: World, micro_batch: int) -> Engine:
        return Sharded(config, world) if world.size > 1 else build_engine(config, world, micro_batch)

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        cuda = bench.world.device.type == "cuda"
        options = StagingOptions(
            use_pinned_memory=cuda,
            use_shared_memory=self.kind == AsyncCheckpointerType.PROCESS,
            use_async_staging=cuda or self.staged_beside,
            use_non_blocking_copy=cuda,
        )
        self.stager = DefaultStager(options)
        # Its collectives run in a thread: among those of the training they would meet the wrong ones.
        self.group = dist.new_group(backend="gloo")
        self.staged: Future[None] | None = None
        self.written: Future[Any] | None = None
        self.done = 0.0
        bench.engine.before_update = self.settle

    def after_step(self, record: StepRecord) -> None:
        if not record.save:
            return
        if self.written is not None:
            self.written.result()
        found = dcp.async_save(
            self._state(),
            checkpoint_id=str(self.saved(record.position.step)),
            async_checkpointer_type=self.kind,
            async_stager=self.stager,
            process_group=self.group,
        )
        if isinstance(found, Future):
            self.staged, self.written = None, found
        else:
            self.staged, self.written = found.staging_completion, found.upload_completion
        self.written.add_done_callback(self._note)

    def settle(self) -> None:
        """Staging must be over before the optimizer changes what is staged."""
        if self.staged is not None:
            self.staged.result()
            self.staged = None

    def finish(self) -> float:
        if self.written is not None:
            self.written.result()
        return self.done

    def saved(self, step: int) -> Path:
        return self.bench.place(step)

    def load(self, checkpoint: Path) -> None:
        state = self._state()
        dcp.load(state, checkpoint_id=str(checkpoint))
        set_state_dict(
            self.bench.engine.model,
            self.bench.engine.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def close(self) -> None:
        self.stager.close()

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.bench.engine.model, self.bench.engine.optimizer)
        return {"model": model, "optimizer": optimizer}

    def _note(self, _: Future[Any]) -> None:
        self.done = time.time()


class StagedBeside(Threaded):
    """As a user could have it who does not ask whether the CPU is supported: staged in a thread, too."""

    staged_beside = True


class Process(Threaded):
    """Writes and fsyncs in a process of its own, from shared memory."""

    kind = AsyncCheckpointerType.PROCESS
