"""DeepSpeed through Accelerate, ZeRO stages 0 to 3."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator, init_empty_weights
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

from configs.schema import RunConfig
from train.deepspeed_state import zero_state
from train.distributed import World
from train.engine import Engine, adamw, round_weights
from train.initialize import initialize
from train.masking import logits_of
from train.memory import REDUCE_BUCKET
from train.model import build_model, build_skeleton, meta_model
from train.parameters import parameter_count
from train.torch_state import TorchState

# DeepSpeed would compile a shared-memory reduction at start: a minute, and a compiler, to save little.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


class DeepSpeedEngine(Engine):
    """bf16 weights with fp32 master copies, fp32 gradient accumulation and reduction; or all of it in fp32.

    Stage 0 has no master copies, so there bf16 is autocast over fp32 weights, as in `train.torch_engine`.
    """

    def __init__(self, config: RunConfig, world: World, micro_batch: int) -> None:
        super().__init__(config, world)
        trainable = parameter_count(meta_model(config.model)).trainable
        settings = deepspeed_settings(config, micro_batch, trainable)
        # Before Accelerate: it makes Transformers partition models as they are built, weights unseen.
        model, buffers = self._build(settings)
        self.accelerator = Accelerator(
            # cpu=True would choose Accelerate's own CPU path and drop DeepSpeed.
            kwargs_handlers=[
                InitProcessGroupKwargs(backend="nccl" if world.device.type == "cuda" else "gloo")
            ],
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False),
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.engine, _ = self.accelerator.prepare(model, adamw(model, config.optimizer))
        self.model = model
        if config.parallelism.zero_stage == 0:
            self.optimizer = self.engine.optimizer
            self.state = TorchState(model, self.optimizer, world.rank, world.size)
        else:
            self.optimizer = self.engine.optimizer.optimizer
            self.state = zero_state(self.engine.optimizer, names)
        self._restore_buffers(buffers)
        self.model.train()
        if config.model.compile:
            self.engine.compile()

    def _build(self, settings: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The model, partitioned while it is made where that can be, and its buffers in full precision."""
        ready_made = self.config.model.pretrained or self.config.model.lora
        if self.config.parallelism.zero_stage < 3 or ready_made:
            model = build_model(self.config.model, self.config.run.seed)
            if self.config.model.precision == "bf16":
                round_weights(model)
            return model, dict(model.named_buffers())
        with init_empty_weights(include_buffers=False):
            buffers = dict(build_skeleton(self.config.model).named_buffers())
        with deepspeed.zero.Init(config_dict_or_path=settings):
            model = build_skeleton(self.config.model)
        initialize(model, self.config.run.seed, gather=_gather)
        return model, buffers

    def _restore_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """DeepSpeed casts buffers to bf16 with the weights: rotary tables would become another model's."""
        for name, buffer in buffers.items():
            owner, _, key = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[key] = buffer.to(self.world.device)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        return logits_of(self.engine, input_ids, position_ids)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        # DeepSpeed's own accumulation count stays 1: ours may change from step to step.
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss)

    def update(self) -> torch.Tensor:
        norm = None
        if self.config.parallelism.zero_stage == 0:
            grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        # A plain float where DeepSpeed found it not finite.
        return torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)


def deepspeed_settings(config: RunConfig, micro_batch: int, trainable: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run (https://www.deepspeed.ai/docs/config-json).

    ``trainable`` is the count of trained parameters.
    """
    parallelism, bf16 = config.parallelism, config.model.precision == "bf16"
    zero: dict[str, Any] = {
        "stage": parallelism.zero_stage,
        "overlap_comm": parallelism.zero_stage == 3,
        # Allocated whole, at every stage: no more than there are gradients.
        "reduce_bucket_size": min(REDUCE_BUCKET, trainable),
    }
    if parallelism.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if parallelism.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        # Our own check reads all steps at once (train/hooks/metrics.py); this one would wait at each.
        "bf16": {"enabled": bf16 and parallelism.zero_stage > 0, "check_grad_overflow": False},
        "torch_autocast": {"enabled": bf16 and parallelism.zero_stage == 0, "dtype": "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _gather(parameters: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[None]:
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
