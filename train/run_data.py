"""A run's data: prepared once, and the same at every start and on every process."""

from __future__ import annotations

from base.files import read_json
from configs.schema import RunConfig
from data.manifest import check_unchanged, write_manifest
from data.order.consumption import check_caps
from data.prepare import prepare_run
from data.prepared import Prepared, check_vocabulary
from data.stream import BatchStream
from record.folder import RunFolder
from train.architecture import vocab_size
from train.distributed import World
from train.left_out import files_left_out


def open_stream(config: RunConfig, prepared: Prepared, folder: RunFolder) -> BatchStream:
    """The run's batches, without the files that an earlier start could not read.

    Raises:
        UmbelError: more epochs of a source than the config allows.
    """
    stream = BatchStream(prepared, config, files_left_out(folder))
    check_caps(config.data, prepared.manifest, stream.order, stream.total)
    return stream


def open_data(config: RunConfig, folder: RunFolder, world: World) -> Prepared:
    """The run's prepared data; of several processes one prepares it, and the others wait for it.

    The first start leaves its manifest and its tokenizer in the run folder. The cache may go; whoever
    exports the run needs the tokenizer.

    Raises:
        UmbelError: a fault in the sources, a vocabulary larger than the model's, or other data than the run
            began with, on any process: nodes may have other files under the same names.
    """
    record = folder.path / "data.json"
    began_with = read_json(record) if record.exists() else None
    prepared = prepare_run(config, began_with=began_with)
    check_vocabulary(prepared, vocab_size(config.model))
    if world.is_first and began_with is None:
        prepared.tokenizer.save(folder.path / "tokenizer")
        write_manifest(record, prepared.manifest)
    world.barrier()
    check_unchanged(read_json(record), prepared.manifest)
    return prepared
