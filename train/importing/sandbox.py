"""The one process that opens pickles: ``python -P -m train.importing.sandbox``, its job on standard input.

The job is ``{"files": [path, …], "out": folder}``. Of the n-th file it leaves ``n.safetensors``, its tensors
by number, and ``n.json``, everything else, with ``{"$tensor": number}`` where a tensor stood; at last
``report.json``, ``{"confined": {…}}`` or ``{"file": …, "error": …}``.

Nothing in a pickle is called but what `torch.load` needs to make tensors. The few other names that a
DeepSpeed checkpoint holds stand for records without any code.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint.format import DTYPE_BYTES
from checkpoint.safetensors import Tensor, write_file
from train.importing.confine import die_with_parent, leave_network, limit_resources, write_only_below

if TYPE_CHECKING:
    import torch

MAX_VALUES = 10_000_000
"""Of one file: a pickle of a kilobyte can describe more than any memory holds."""


class Record:
    """Stands for an object of a checkpoint: its attributes, or the arguments it was made from."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


_RECORDS = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.offload_config.OffloadDeviceEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.bf16_optimizer.fragment_address",
)


def main() -> int:
    """Do the job; 0 when every file was read, 3 when one was refused."""
    job = json.load(sys.stdin)
    out, files = Path(job["out"]), [Path(file) for file in job["files"]]
    confined = {"network": leave_network()}
    import torch

    torch.set_num_threads(1)
    torch.serialization.add_safe_globals([(Record, name) for name in _RECORDS])
    limit_resources(max(file.stat().st_size for file in files))
    confined["writing"] = write_only_below(out)
    report: dict[str, Any] = {"confined": confined}
    for number, file in enumerate(files):
        try:
            _convert(file, out, number)
        except Exception as error:
            report = {"file": str(file), "error": _told(error)}
            break
    (out / "report.json").write_text(json.dumps(report))
    return 3 if "error" in report else 0


def _convert(file: Path, out: Path, number: int) -> None:
    import torch

    # A file in the old form, which is no zip archive, cannot be mapped.
    mapped = zipfile.is_zipfile(file)
    # This process is here for nothing else.
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)  # noqa: TID251
    plain = Plain()
    text = json.dumps(plain.of(content), allow_nan=False)
    write_file(out / f"{number}.safetensors", list(plain.written()), {})
    (out / f"{number}.json").write_text(text)


class Plain:
    """Turns what a pickle held into JSON and a list of tensors. A tensor that stands in two places is one."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.numbers: dict[tuple[Any, ...], int] = {}
        self.values = 0

    def of(self, value: Any) -> Any:
        """``value`` as JSON knows it."""
        import torch

        self.values += 1
        if self.values > MAX_VALUES:
            raise ValueError(f"holds more than {MAX_VALUES} values")
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {str(key): self.of(each) for key, each in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.of(each) for each in value]
        if isinstance(value, Record):
            return self.of(vars(value))
        return str(value) if isinstance(value, torch.dtype) else {"$type": type(value).__name__}

    def written(self) -> Iterator[Tensor]:
        """What goes into the safetensors file."""
        for number, tensor in enumerate(self.tensors):
            yield Tensor(str(number), _dtype(tensor), tuple(tensor.shape), partial(_bytes, tensor))

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        import torch

        if _dtype(tensor) not in DTYPE_BYTES or tensor.layout != torch.strided or tensor.device.type != "cpu":
            return {"$type": f"{tensor.layout} tensor of {tensor.dtype} on {tensor.device}"}
        where = tensor.untyped_storage().data_ptr() if tensor.numel() else None
        key = (where, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self.numbers:
            self.numbers[key] = len(self.tensors)
            self.tensors.append(tensor.detach())
        found: dict[str, Any] = {"$tensor": self.numbers[key]}
        if tensor.dim() == 0:
            found["value"] = self.of(tensor.item())
        return found


def _dtype(tensor: torch.Tensor) -> str:
    """As safetensors spells it: torch.bfloat16 is BF16. (`train.portable` would import half of the house.)"""
    name = str(tensor.dtype).removeprefix("torch.")
    return re.sub("float|uint|int", lambda match: match[0][0], name).removesuffix("fn").upper()


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _told(error: Exception) -> str:
    """One line; of a pickle that asks for code, the name of that code."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return f"asks for {asked[1]}, which no checkpoint needs: nothing of it was run"
    if isinstance(error, RecursionError):
        return "is nested too deep"
    return f"cannot be read ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
