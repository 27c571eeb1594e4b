from __future__ import annotations

from configs.compose import compose
from launch.environment import OFFLINE, cluster_variables


def test_nodes_without_internet_are_told_four_times() -> None:
    assert cluster_variables(compose([]).cluster) == {}
    found = cluster_variables(compose(["cluster.internet=false"]).cluster)
    assert found == OFFLINE
    assert set(OFFLINE) == {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE"}


def test_the_profile_has_the_last_word() -> None:
    own = ["cluster.internet=false", "cluster.cache=/shared", "cluster.environment={WANDB_MODE: disabled}"]
    found = cluster_variables(compose(own).cluster)
    assert (found["HF_HOME"], found["WANDB_MODE"]) == ("/shared/huggingface", "disabled")
