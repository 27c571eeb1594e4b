"""Datasets of a Hugging Face hub: which files make up a split, at one commit.

`datasets` reads the dataset's own card (configurations, splits, patterns); no code of the dataset is run.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from base.errors import UmbelError
from configs.schema import Source
from data.places.retry import BadFile, persist
from data.places.urls import Info

BATCH = 500
"""Paths asked for at once."""
COMMIT = re.compile(r"[0-9a-f]{40}")
SCHEME = "hf://"


def list_hub(source: Source, where: str) -> tuple[dict[str, tuple[str, Info]], str]:
    """The files of a dataset's configuration and split, and the commit that they are pinned to.

    Returns:
        name in the repository -> (hf:// URL with the commit, size and hashes).

    Raises:
        UmbelError: no such dataset, revision, configuration or split, or the hub cannot be reached.
    """
    repo = source.path or ""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise UmbelError(f"'{repo}' is no dataset of a hub", where=where, fix="write org/name")
    commit = commit_of(repo, source.revision, where)
    config = _config(repo, commit, source, where)
    urls = _split(config, repo, commit, source, where)
    root = f"{SCHEME}datasets/{repo}@{commit}/"
    paths = [url.removeprefix(root) for url in urls]
    infos = _infos(repo, commit, paths, where)
    return {path: (root + path, infos[path]) for path in paths}, commit


def commit_of(repo: str, revision: str | None, where: str, kind: str = "dataset") -> str:
    """The commit that a branch, tag or commit of a repository stands for now."""
    from huggingface_hub import HfApi

    def ask() -> str:
        return str(HfApi().repo_info(repo, revision=revision, repo_type=kind).sha)

    try:
        return persist(ask, f"{kind} {repo}")
    except BadFile as error:
        at = f" at revision {revision}" if revision else ""
        what = f"{repo}{at}: {error.what}"
        raise UmbelError(what, where=where, fix=error.fix or "check the network, and HF_ENDPOINT") from error


def _config(repo: str, commit: str, source: Source, where: str) -> Any:
    """The builder configuration, in the words of `datasets`, that the source names, or the default one."""
    from datasets.load import HubDatasetModuleFactory

    def resolve() -> Any:
        try:
            return HubDatasetModuleFactory(repo, commit_hash=commit).get_module().builder_configs_parameters
        except (FileNotFoundError, ValueError) as error:
            if _may_be_broken(error):
                raise
            what = f"{repo} is no dataset that `datasets` can read ({str(error).partition(chr(10))[0]})"
            raise UmbelError(what, where=where, fix="name its files: path=hf://datasets/…") from error

    parameters = persist(resolve, where)
    configs = {config.name: config for config in parameters.builder_configs}
    wanted = source.config or parameters.default_config_name
    if wanted is None and len(configs) == 1:
        (wanted,) = configs
    if wanted not in configs:
        what = f"has no configuration '{wanted}'" if wanted else "has several configurations"
        known = ", ".join(sorted(configs))
        raise UmbelError(f"{repo} {what}", where=where, fix=f"set config to one of: {known}")
    return configs[wanted]


def _may_be_broken(error: Exception) -> bool:
    """Whether an error of `datasets` comes from what was sent, and not from what the dataset is."""
    is_answer = error.__cause__ is not None or hasattr(error, "response")
    return isinstance(error, json.JSONDecodeError) or (isinstance(error, FileNotFoundError) and is_answer)


def _split(config: Any, repo: str, commit: str, source: Source, where: str) -> list[str]:
    from datasets import DownloadConfig

    files = config.data_files
    if hasattr(files, "resolve"):
        base = f"{SCHEME}datasets/{repo}@{commit}"
        patterns = files
        files = persist(lambda: patterns.resolve(base, DownloadConfig()), where)
    if source.split not in files:
        known = ", ".join(map(str, files))
        raise UmbelError(
            f"{repo} has no split '{source.split}'", where=where, fix=f"set split to one of: {known}"
        )
    return [str(url) for url in files[source.split]]


def _infos(repo: str, commit: str, paths: list[str], where: str) -> dict[str, Info]:
    """Size and hash of every file, as the hub keeps them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    found: dict[str, Info] = {}
    for first in range(0, len(paths), BATCH):
        part = paths[first : first + BATCH]
        ask = partial(HfApi().get_paths_info, repo, part, revision=commit, repo_type="dataset")
        for file in persist(ask, where):
            if isinstance(file, RepoFile):
                found[file.path] = {"size": file.size, "lfs": file.lfs, "blob_id": file.blob_id}
    missing = [path for path in paths if path not in found]
    if missing:
        raise UmbelError(f"{repo} does not hold {missing[0]}", where=where, fix="choose another revision")
    return found


def pin_url(url: str, where: str, revision: str | None = None) -> tuple[str, str]:
    """An hf:// URL at a commit, and the commit: the given one, or what its branch stands for now."""
    from huggingface_hub import parse_hf_uri

    try:
        place = parse_hf_uri(url)
    except ValueError as error:
        fix = "write hf://datasets/org/name/…"
        raise UmbelError(str(error).partition("\n")[0], where=where, fix=fix) from error
    if place.is_bucket:
        raise UmbelError("buckets keep no commits", where=where, fix="use a repository of the hub")
    commit = revision or place.revision or "main"
    if not COMMIT.fullmatch(commit):
        commit = commit_of(place.id, commit, where, place.type)
    return f"{SCHEME}{place.type}s/{place.id}@{commit}/{place.path_in_repo}".rstrip("/"), commit
