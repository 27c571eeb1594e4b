"""Local paths of a config, made to mean the same from any folder."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from configs.schema import Data, RunConfig, Source


def absolute_paths(config: RunConfig) -> RunConfig:
    """A copy whose local files are named by absolute paths; URLs and names of the hub stay as they are.

    A source is local unless it is a URL or of the hub. A model or tokenizer is local where it exists: else
    it may be a hub's name. A relative ``run.dir`` lies in the cluster's scratch where it has one, and what no
    key places elsewhere is cached in the cluster's shared cache.
    """
    made = copy.deepcopy(config)
    _shared_folders(made)
    here = [source for source in made.data.sources.values() if source.kind != "hub"]
    parts: list[Data | Source] = [made.data, *here]
    for part in parts:
        if part.path and "://" not in part.path:
            part.path = _absolute(part.path)
    made.data.tokenizer.path = _if_there(made.data.tokenizer.path)
    made.model.pretrained = _if_there(made.model.pretrained)
    return made


def _shared_folders(config: RunConfig) -> None:
    cluster = config.cluster
    if cluster.scratch:
        cluster.scratch = _absolute(cluster.scratch)
        config.run.dir = str(Path(cluster.scratch, Path(config.run.dir).expanduser()))
    if cluster.container:
        cluster.container.image = _if_there(cluster.container.image) or cluster.container.image
    if cluster.cache:
        cluster.cache = _absolute(cluster.cache)
        config.data.cache_dir = config.data.cache_dir or str(Path(cluster.cache, "umbel"))


def _if_there(name: str | None) -> str | None:
    return _absolute(name) if name and Path(name).expanduser().exists() else name


def _absolute(path: str) -> str:
    """Links are kept: what they point to may change on purpose."""
    return os.path.abspath(Path(path).expanduser())
