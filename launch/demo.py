"""The demo: train on two processes, hand over to one, see what was learned. The same functions as the CLI."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from base.devices import cuda_devices
from base.errors import UmbelError
from configs.compose import compose, load
from configs.schema import RunConfig
from data.prepare import prepare_run
from launch.local import launch
from launch.overrides import apply
from record.events import latest, read_events
from record.folder import RunFolder
from record.metrics import read_metrics

PROMPT = "def __init__(self"
WINDOW = 20
FIRST, SECOND = "zero2", "zero3"
NEXT = (
    ("let it write", "umbel generate {name} --prompt 'import '"),
    ("train it longer", "umbel resume {name} --change schedule.steps={steps}"),
    ("what it was fed", "umbel data inspect --run {name} --step 100"),
    ("what was saved", "umbel checkpoint inspect {name}"),
    ("for transformers", "umbel export {name} --out my-bloom"),
    ("a larger model", "umbel plan model=bloom_560m"),
)
"""What to try after the demo."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Losses in nats per token, and a continuation of `PROMPT`.

    ``handover_loss`` and ``final_loss`` are means over the `WINDOW` steps before: one small batch is noise.
    """

    unigram_entropy: float
    first_loss: float
    handover_step: int
    handover_loss: float
    final_step: int
    final_loss: float
    held_out: dict[str, float]
    sample: str

    @property
    def held_out_mean(self) -> float:
        return sum(self.held_out.values()) / len(self.held_out)

    @property
    def well_below(self) -> bool:
        """Whether the model knows more than how frequent each token is."""
        return max(self.final_loss, self.held_out_mean) < self.unigram_entropy - 0.5


def config_of(name: str, overrides: list[str]) -> RunConfig:
    """The demo's first half: two processes at ZeRO stage 2, on the CPU unless there are two devices."""
    device = "auto" if len(cuda_devices()) >= 2 else "cpu"
    first = [f"parallelism={FIRST}", "parallelism.processes=2", f"cluster.device={device}"]
    return compose(["experiment=demo", f"run.name={name}", *first, *overrides])


def free_name(overrides: list[str]) -> str:
    """``demo``, or ``demo-2``… after runs of the demo that are finished or have another config."""
    for number in range(1, 1000):
        name = "demo" if number == 1 else f"demo-{number}"
        folder = RunFolder.of(config_of(name, overrides))
        if not folder.run_yaml.exists() or (latest(read_events(folder), "finished") is None):
            return name
    raise UmbelError("holds a thousand demos", where="runs", fix="delete some")


def half_done(config: RunConfig) -> bool:
    """Whether the first half is saved already, by a demo that was interrupted after it."""
    saved = latest(read_events(RunFolder.of(config)), "checkpoint")
    return saved is not None and saved["step"] >= config.schedule.steps // 2


def train_first_half(config: RunConfig) -> int:
    """Train to half of the steps, save, end. Returns launch's exit code."""
    half = {"UMBEL_STOP_AFTER": str(config.schedule.steps // 2)}
    return launch(config, typed=["umbel", "demo"], variables=half)


def train_second_half(config: RunConfig) -> int:
    """Go on from there with one process at another ZeRO stage, to the end."""
    frozen = load(RunFolder.of(config).run_yaml)
    other = [f"parallelism={SECOND}", "parallelism.processes=1", f"cluster.device={config.cluster.device}"]
    return launch(apply(frozen, other), typed=["umbel", "demo"], hints=False)


def what_it_learned(config: RunConfig) -> Learned:
    """Read the losses, measure the held-out ones and let the model write."""
    from train.evaluate import evaluate_run
    from train.generate import generate

    folder = RunFolder.of(config)
    lines = read_metrics(folder)
    start = latest(read_events(folder), "start")
    handover = start["step"] if start else 0
    return Learned(
        unigram_entropy=prepare_run(config).unigram_entropy,
        first_loss=lines[0]["loss"],
        handover_step=handover,
        handover_loss=_mean_loss(lines, max(1, handover)),
        final_step=lines[-1]["step"],
        final_loss=_mean_loss(lines, lines[-1]["step"]),
        held_out=evaluate_run(folder.path, None, config.evaluation.sequences),
        sample=generate(folder.path, PROMPT, 60, None, 0.7, 1),
    )


def _mean_loss(lines: list[dict[str, Any]], step: int) -> float:
    return statistics.fmean([line["loss"] for line in lines if step - WINDOW < line["step"] <= step])
