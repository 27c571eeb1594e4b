"""The mixture of BLOOM, over placeholders for one's own texts."""

from __future__ import annotations

import math

import pytest

from base.errors import UmbelError
from configs.compose import compose, differing_keys, from_dict, is_defining
from configs.plain import to_dict
from configs.schema import RunConfig


def roots(*overrides: str) -> RunConfig:
    return compose(["data=roots", "model=bloom_560m", *overrides])


def test_the_28_weights_are_the_published_ones() -> None:
    sources = roots().data.sources
    assert len(sources) == 28
    assert math.fsum(source.weight for source in sources.values()) == pytest.approx(1, abs=1e-12)
    assert sources["en"].weight == 0.22039886281139984
    assert sources["indic-as"].weight == 0.00011200204325988887
    assert (sources["en"].language, sources["indic-hi"].language, sources["zht"].language) == (
        "en", "hi", "zh-Hant",
    )  # fmt: skip


def test_the_place_of_the_texts_is_each_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = roots()
    assert here.data.sources["oscar-en"].path == "roots/oscar-en"
    monkeypatch.setenv("UMBEL_ROOTS", "corpora/of/ours")
    there = roots()
    assert there.data.sources["oscar-en"].path == "corpora/of/ours/oscar-en"
    assert differing_keys(here, there) == []
    # What is frozen is resolved: another environment changes nothing.
    assert from_dict(to_dict(here)).data.sources["oscar-en"].path == "roots/oscar-en"
    assert not is_defining("data.sources.oscar-en.path")


def test_one_source_can_be_replaced_or_left_out() -> None:
    changed = roots(
        "data.sources.en.path=s3://ours/english/*.parquet",
        "data.sources.indic-as.max_epochs=4",
        "~data.sources.code",
        "data.sources.eu={kind: hub, path: org/basque, revision: v1}",
    ).data.sources
    assert len(changed) == 27
    assert changed["en"].path == "s3://ours/english/*.parquet"
    assert changed["indic-as"].max_epochs == 4
    assert (changed["eu"].kind, changed["eu"].weight) == ("hub", 0.0016218007982438264)


def test_its_sequences_are_blooms() -> None:
    assert roots().data.sequence_length == 2048
    with pytest.raises(UmbelError, match="no preset 'root'; did you mean 'roots'"):
        compose(["data=root"])
