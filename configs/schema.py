"""Every key a run may have, its type and its meaning.

Two kinds of key. *Defining* keys make the run what it is: change one and it is another run. *Execution*
keys say where and how fast it runs, and may change at every start (`EXECUTION_SECTIONS`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

EXECUTION_SECTIONS = (
    "parallelism",
    "cluster",
    "supervision",
    "checkpoint",
    "evaluation",
    "samples",
    "tracker",
)
"""Sections that may differ between two starts of the same run."""

EXECUTION_KEYS = (
    "run.name",
    "run.dir",
    "data.cache_dir",
    "data.cache_gb",
    "data.workers",
    "data.on_bad_file",
    "model.compile",
    "model.activation_checkpointing",
)
"""Single keys outside those sections that may differ too."""


PLACES = r"data\.path|data\.sources\.[^.]+\.path|data\.tokenizer\.path|model\.pretrained"
"""Keys that say where something lies. What lies there defines the run, and is known by its hashes: the place
may differ from machine to machine."""


@dataclass(kw_only=True)
class Run:
    """Who the run is."""

    name: str  # names the folder <dir>/<name>
    dir: str = "runs"
    seed: int = 1234


@dataclass(kw_only=True)
class Lora:
    """Low-rank adapters on a frozen base (Hu et al. 2021, arXiv:2106.09685), through peft."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None  # None: every linear layer but the output head


@dataclass(kw_only=True)
class Model:
    """A Transformers causal language model: from its shape, or pretrained."""

    arch: str | None = None  # Transformers model_type: bloom, gpt2, llama…
    config: dict[str, Any] = field(default_factory=dict)  # keys of that model's Transformers config
    pretrained: str | None = None  # hub name or local folder; excludes arch
    revision: str | None = None
    precision: Literal["bf16", "fp32"] = "bf16"  # bf16 keeps fp32 master weights, gradients, reduction
    attention: Literal["auto", "eager", "sdpa", "flex_attention"] = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    lora: Lora | None = None


@dataclass(kw_only=True)
class Filters:
    """Which documents of a source are kept; what is set must all hold."""

    min_chars: int = 0
    max_chars: int | None = None
    matches: str | None = None  # a regular expression that the text must contain
    excludes: str | None = None  # one that it must not contain
    columns: dict[str, list[Any]] = field(default_factory=dict)  # column -> accepted values


@dataclass(kw_only=True)
class Source:
    """One stream of documents in the mixture."""

    kind: Literal["python", "text", "jsonl", "parquet", "arrow", "hub", "auto"] = "auto"  # auto: by ending
    path: str | None = None  # file, folder, glob or URL (s3, gs, hf, https); hub: org/name; python: none
    config: str | None = None  # hub: the dataset's configuration
    split: str = "train"  # hub
    revision: str | None = None  # hub: branch, tag or commit
    part: Literal["code", "tests", "prose"] | None = None  # which part of the Python library
    filters: Filters = field(default_factory=Filters)
    field: str = "text"  # column that holds the text
    template: str | None = None  # a text made of columns, "{title}: {body}", in place of field
    weight: float = 1.0  # relative share in the mixture
    max_epochs: float | None = None  # refuse a run that would read the source more often
    license: str | None = None
    language: str | None = None
    trust_etag: bool = False  # take a server's ETag for a file's identity, where it vouches for no hash


@dataclass(kw_only=True)
class Tokenizer:
    """An existing tokenizer, or one to train on the run's own data."""

    path: str | None = None  # tokenizer.json or Transformers folder; None: the pretrained model's, or train
    vocab_size: int = 8192  # of a tokenizer that is trained
    train_bytes: int = 8_000_000  # how much text a trained tokenizer sees


@dataclass(kw_only=True)
class Mixture:
    """How the sources' weights are found and what they weigh."""

    weights: Literal["declared", "proportional", "temperature", "unimax"] = "declared"
    temperature: float = 3.0  # size^(1/T) (mT5, arXiv:2010.11934)
    max_epochs: float = 4.0  # UniMax's cap on repeats (Chung et al. 2023, arXiv:2304.09151)
    by: Literal["tokens", "samples"] = "tokens"  # what declared weights are shares of


@dataclass(kw_only=True)
class Phase:
    """Other weights from some point of the run on, for annealing. Every source goes on where it was."""

    from_tokens: float  # sequences x data.sequence_length
    weights: dict[str, float]  # of sources; those left out are not read


@dataclass(kw_only=True)
class Data:
    """Where tokens come from and how they fill a sequence."""

    mode: Literal["prepared", "streaming"] = "prepared"  # streaming: tokenize and pack while training
    sources: dict[str, Source] = field(default_factory=dict)
    path: str | None = None  # short form of one source: file, folder, glob or URL
    mixture: Mixture = field(default_factory=Mixture)
    phases: list[Phase] = field(default_factory=list)
    skip: list[list[int]] = field(default_factory=list)  # ranges [first, end) of the global order, left out
    sequence_length: int = 512
    format: Literal["text", "messages", "auto"] = "auto"  # messages: chats, targets on assistant turns only
    packing: Literal["concat", "best_fit", "none"] = "concat"  # concat: end to end and split; best_fit: whole
    # documents, as many as fit a row; none: one document per row. The last two are padded.
    intra_document_mask: bool = False  # no token sees another document of its row; positions restart
    held_out: float = 0.01  # share of documents kept for evaluation, chosen by their hash
    max_bytes: int | None = None  # read at most this much text per source
    shuffle_window: int = 100_000  # streaming: documents among which the order is drawn
    on_bad_file: Literal["stop", "skip"] = "stop"  # streaming: a file that stays unreadable
    workers: int = 1  # streaming: processes per rank that fetch, tokenize and pack; 0: a thread
    cache_dir: str | None = None  # prepared rows, fetched files; None: $UMBEL_CACHE or ~/.cache/umbel
    cache_gb: float = 64.0  # streaming: fetched documents kept on each node
    tokenizer: Tokenizer = field(default_factory=Tokenizer)


@dataclass(kw_only=True)
class Parallelism:
    """How one step is spread over processes. Changes speed and memory, never the result."""

    name: str = "single"
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    processes: int | None = None  # world size; None: cluster.nodes x devices per node
    micro_batch: int | Literal["auto"] = "auto"  # sequences per process and forward pass
    accumulation: int | None = None  # micro-batches per step; None: what global_batch asks for
    offload_optimizer: bool = False
    offload_parameters: bool = False


@dataclass(kw_only=True)
class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    name: Literal["adamw"] = "adamw"
    lr: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    decay_norms: bool = False  # norms and biases
    clip_grad_norm: float = 1.0  # 0: no clipping
    fused: bool | None = None  # None: yes, on any device


@dataclass(kw_only=True)
class BatchRamp:
    """Grow the global batch by `increment` until `sequences` have been seen, as BLOOM did."""

    start: int
    increment: int
    sequences: int


@dataclass(kw_only=True)
class Schedule:
    """Learning rate and batch size: pure functions of the step."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    steps: int = 1000
    warmup_steps: int = 100
    decay_steps: int = 0  # wsd: length of the final decay
    min_lr_ratio: float = 0.1
    global_batch: int = 64  # sequences per step
    batch_ramp: BatchRamp | None = None


@dataclass(kw_only=True)
class Checkpoint:
    """When the portable state is saved, how, and how much of it is kept."""

    every: int | Literal["auto"] = 100  # steps; 0: not by steps; auto: as often as pays (cluster.mtbf_hours)
    every_minutes: float | None = None  # and when so much time has passed since the last save
    max_minutes: float = 60.0  # auto: at least this often
    asynchronous: bool = True  # a process beside each worker writes; false: the step waits for the disk
    when_busy: Literal["wait", "skip"] = "wait"  # a save that comes while the last one is being written
    keep_last: int = 3
    keep_every: int | None = None  # keep those of steps divisible by this, too
    keep_best: int = 0  # keep so many with the lowest held-out loss, too
    verify: Literal["sizes", "full", "finite"] = "full"  # what resuming checks of its own files
    self_check: bool = True  # read the first save of each start back and compare it with the live state
    compare_replicas: int = 0  # steps between two checks that all replicas hold the same weights; 0: never


@dataclass(kw_only=True)
class Evaluation:
    """Held-out loss per source."""

    every: int = 0  # steps; 0: never during training
    sequences: int = 64  # per source


@dataclass(kw_only=True)
class Samples:
    """Continuations of fixed prompts, written to the log while the run learns."""

    every: int = 0
    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 48


@dataclass(kw_only=True)
class Tracker:
    """Where metrics go besides metrics.jsonl."""

    name: Literal["local", "wandb"] = "local"
    log_every: int = 10  # steps between two reads of the device
    project: str = "umbel"
    entity: str | None = None


@dataclass(kw_only=True)
class Container:
    """An image in which the workers run, on Slurm."""

    runtime: Literal["apptainer", "pyxis"] = "apptainer"  # pyxis: srun --container-image, by enroot
    image: str  # a .sif or .sqsh file, or what the runtime pulls
    mounts: list[str] = field(default_factory=list)  # host:container; the run's folder is always there
    options: list[str] = field(default_factory=list)  # further options of the runtime


@dataclass(kw_only=True)
class Slurm:
    """What is asked of Slurm. None: what the site does by itself."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    time: str | None = None  # limit of one job, as sbatch reads it: 20:00:00, 4-04 (days-hours); quote it
    gres: str = "gpu"  # name of a device among Slurm's generic resources: gpu, gpu:a100
    cpus_per_device: int | None = None  # None: the share of a node's cores that its devices are taken of
    memory_per_device_gb: float | None = None  # None: the same share of a node's memory
    exclude: list[str] = field(default_factory=list)  # nodes never to be given
    tasks: Literal["per_device", "per_node"] = "per_device"  # per_node: one torchrun on each node
    chain: Literal["requeue", "array", "dependency"] = "requeue"  # how a run gets its next job
    jobs: int = 1  # array, dependency: how many jobs are submitted, one after another
    grace_seconds: int | None = None  # from the warning to the limit; None: from measured steps and saves
    options: dict[str, Any] = field(default_factory=dict)  # further options of sbatch: {mail-type: FAIL}


@dataclass(kw_only=True)
class Cluster:
    """The machines, and how one gets them."""

    name: str = "local"
    institution: str = "local"
    launcher: Literal["local", "slurm"] = "local"
    nodes: int = 1
    spare_nodes: int = 0  # asked for besides; they take over from nodes that fail
    devices_per_node: int | None = None  # None: those this machine shows; Slurm: those of the partition
    slurm: Slurm = field(default_factory=Slurm)
    container: Container | None = None
    modules: list[str] = field(default_factory=list)  # loaded before anything starts
    setup: list[str] = field(default_factory=list)  # shell lines before anything starts
    environment: dict[str, str] = field(default_factory=dict)  # NCCL_SOCKET_IFNAME and its like
    internet: bool = True  # false: nothing on the nodes tries to reach a hub or a tracker
    scratch: str | None = None  # shared folder in which a relative run.dir lies; None: where one stands
    cache: str | None = None  # shared folder of data.cache_dir and Hugging Face's caches
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak_tflops: float | None = None  # per device, dense bf16; None: known devices by name
    memory_gb: float | None = None  # per process; None: read from the device
    mtbf_hours: float = 5000.0  # mean time between failures of one node; BLOOM and Llama 3 saw 4000 to 6000


@dataclass(kw_only=True)
class Supervision:
    """What is watched while a run trains, and what happens then."""

    preflight: bool = True  # nodes are looked at before each start
    hang_factor: float = 10.0  # a step, evaluation or save that takes so many times its usual time hangs
    hang_seconds: float = 300.0  # but none shorter than this
    start_minutes: float = 30.0  # from a start to its first step
    restarts: int = 3  # starts in a row without progress after which the run is given up
    blame: int = 2  # faults put down to a node after which it is left out
    straggler: float = 0.05  # share by which a rank must be slower than the others to be named
    on_spike: Literal["tell", "rollback", "stop"] = "tell"  # the loss leaves its range and does not return
    on_nan: Literal["rollback", "stop"] = "stop"  # rollback, here and above: and skip the data read since
    disk_alerts: list[float] = field(
        default_factory=lambda: [0.75, 0.85]
    )  # shares of bytes and inodes in use
    alert_command: str | None = None  # gets each alert as JSON on stdin; a webhook: $UMBEL_ALERT_WEBHOOK


@dataclass(kw_only=True)
class RunConfig:
    """A whole run."""

    run: Run
    model: Model
    data: Data
    parallelism: Parallelism
    optimizer: Optimizer
    schedule: Schedule
    checkpoint: Checkpoint
    evaluation: Evaluation
    samples: Samples
    tracker: Tracker
    cluster: Cluster
    supervision: Supervision = field(default_factory=Supervision)
