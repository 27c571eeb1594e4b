"""The environment variables that a cluster profile asks for, on a laptop and in a batch script alike."""

from __future__ import annotations

from configs.schema import Cluster

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}
"""What keeps the libraries from waiting for a network that is not there."""


def cluster_variables(cluster: Cluster) -> dict[str, str]:
    """Those of ``internet: false``, of ``cache`` and of ``environment``, which has the last word."""
    offline = {} if cluster.internet else OFFLINE
    cache = {"HF_HOME": f"{cluster.cache}/huggingface"} if cluster.cache else {}
    return {**offline, **cache, **cluster.environment}
