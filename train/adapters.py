"""Low-rank adapters on a frozen base (Hu et al. 2021, arXiv:2106.09685), through peft."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from base.errors import UmbelError
from configs.schema import Lora
from train.initialize import preserved_random_state
from train.seeds import derive


def add_adapters(model: PreTrainedModel, lora: Lora, seed: int) -> PreTrainedModel:
    """Freeze ``model`` and adapt its linear layers; what they start from depends on ``seed`` only.

    Raises:
        UmbelError: ``target_modules`` names no layer of the model.
    """
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        # GPT-2's linear layers store their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with preserved_random_state(), warnings.catch_warnings():
            # peft 0.21 asks Transformers by a name that goes away in its version 6.
            warnings.simplefilter("ignore", FutureWarning)
            torch.default_generator.manual_seed(derive(seed, "adapters"))
            adapted: Any = get_peft_model(model, settings)
    except ValueError as error:
        raise UmbelError(
            f"names no linear layer of {model.config.model_type}",
            where="model.lora.target_modules",
            fix="leave it out: then every linear layer but the output head has an adapter",
        ) from error
    # A PeftModel hands every attribute of the model through, and the engines see no difference.
    return adapted
