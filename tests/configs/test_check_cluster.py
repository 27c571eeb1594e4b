"""The rules of the cluster section, and that every profile that comes with Umbel keeps them."""

from __future__ import annotations

import pytest
import yaml

from base.errors import UmbelError
from configs.check import warnings
from configs.check_cluster import OURS, check_cluster
from configs.compose import CONFIG_DIR, compose, groups
from configs.plain import flatten, to_dict


def in_yaml(name: str) -> dict[str, object]:
    found = yaml.safe_load((CONFIG_DIR / "cluster" / f"{name}.yaml").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", groups()["cluster"])
def test_a_profile_composes_under_its_own_name(name: str) -> None:
    assert compose([f"cluster={name}"]).cluster.name == name


def test_the_template_names_every_key_at_its_default() -> None:
    default = to_dict(compose(["cluster=slurm"]))["cluster"]
    assert flatten(in_yaml("template")) == flatten(default) | {"name": "template"}


def test_the_large_site_is_as_its_comments_say() -> None:
    cluster = compose(["cluster=example_large_site"]).cluster
    assert (cluster.internet, cluster.slurm.time, cluster.devices_per_node) == (False, "20:00:00", 8)
    assert cluster.scratch is not None and cluster.cache is not None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("spare_nodes=-1", "cluster.spare_nodes: must be a whole number from 0 on, not -1"),
        ("devices_per_node=0", "cluster.devices_per_node: must be a whole number from 1 on, not 0"),
        ("slurm.jobs=0", "cluster.slurm.jobs: must be a whole number from 1 on, not 0"),
        ("slurm.grace_seconds=70000", "sbatch takes at most 65535 seconds, not 70000"),
        ("slurm.memory_per_device_gb=0", "cluster.slurm.memory_per_device_gb: must be a number above 0"),
        ("slurm.time=20h", "cluster.slurm.time: '20h' is no time limit; write '20:00:00'"),
        ("slurm.time='0'", "cluster.slurm.time: '0' is no time limit"),
        ("slurm.time=30", "cluster.slurm.time: must be text, not 30; quote it twice"),
        ("slurm.jobs=3", "cluster.slurm.jobs: 3 jobs need a chain"),
        ("slurm.gres='gpu:8'", "'gpu:8' is no generic resource; write gpu or gpu:a100"),
        ("slurm.partition='a b'", "cluster.slurm.partition: 'a b' is no name that Slurm knows"),
        ("slurm.account='a; rm'", "cluster.slurm.account"),
        ("slurm.exclude=['a b']", "cluster.slurm.exclude[0]: 'a b' is no node"),
        ("slurm.options={--mail-type: FAIL}", "cluster.slurm.options.--mail-type: is no option of sbatch"),
        ("slurm.options={nodes: 4}", "cluster.slurm.options.nodes: is decided by cluster.nodes"),
        ("slurm.options={comment: [1]}", "cluster.slurm.options.comment: must be a line of text"),
        ("environment={HF_TOKEN: x}", "cluster.environment.HF_TOKEN: is a secret by its name"),
        ("environment={A-B: x}", "cluster.environment.A-B: is no name of a variable"),
        ("modules=['a b']", "cluster.modules[0]: 'a b' is no module"),
        ("scratch=runs", "cluster.scratch: 'runs' is not the same place from everywhere"),
        ("container={image: ' '}", "cluster.container.image: names no image"),
        ("container={image: a.sif, mounts: [/data]}", "cluster.container.mounts[0]: '/data' is no mount"),
        ("container={image: a.sif, mounts: ['a:/b']}", "cluster.container.mounts[0]: 'a:/b' is no mount"),
        ("environment={TOKEN: hf_" + "a" * 20 + "}", "cluster.environment.TOKEN: holds a secret"),
    ],
)
def test_what_slurm_or_the_shell_would_misread_is_refused(override: str, line: str) -> None:
    with pytest.raises(UmbelError) as caught:
        compose(["cluster=slurm", f"cluster.{override}"])
    assert line in str(caught.value)


@pytest.mark.parametrize("text", ["x\ny", "x\0y"])
def test_a_variable_is_one_line(text: str) -> None:
    cluster = compose([]).cluster
    cluster.environment = {"A": text}
    with pytest.raises(UmbelError, match=r"cluster\.environment\.A: must be one line"):
        check_cluster(cluster)


@pytest.mark.parametrize(
    "override",
    [
        "slurm.time='4-04'", "slurm.constraint='a100&nvlink|h100'", "slurm.account=abc@a100",
        "slurm.exclude=['node[1-3]',node7]", "slurm.options={mail-user: me@here, nice: 3, contiguous: true}",
        "slurm.gres=gpu:a100", "scratch='~/runs'", "slurm.partition='a,b'",
        "container={image: a.sif, mounts: ['/a:/b','/c:/d:ro']}",
    ],
)  # fmt: skip
def test_what_sites_have_is_taken(override: str) -> None:
    compose(["cluster=slurm", f"cluster.{override}"])


def test_a_chain_may_have_jobs() -> None:
    for chain in ("array", "dependency"):
        config = compose(["cluster=slurm", f"cluster.slurm.chain={chain}", "cluster.slurm.jobs=3"])
        assert config.cluster.slurm.jobs == 3


def test_keys_of_slurm_without_slurm_are_told_and_not_refused() -> None:
    config = compose(["cluster=example_large_site", "cluster.launcher=local"])
    (told,) = [note for note in warnings(config, 8) if "launcher=local" in note]
    for key in ("cluster.slurm.partition", "cluster.spare_nodes", "cluster.modules", "cluster.setup"):
        assert key in told
    assert "cluster.environment" not in told
    for quiet in (["cluster=example_large_site"], []):
        assert not any("do nothing" in note for note in warnings(compose(quiet), 1))


def test_options_that_other_keys_decide_name_keys_that_exist() -> None:
    known = flatten(to_dict(compose([])))
    for owner in OURS.values():
        for word in owner.split(" and "):
            if "." in word:
                assert word in known
