"""Rows are parsed, and pages asked for, only when somebody wants them."""

import json
import os
import pickle

import numpy as np
import pytest
from helpers.latent_cache import write

from minisora.latents import cache_reader
from minisora.latents.cache_format import num_views


def test_rows_are_parsed_when_asked_for(tmp_path, monkeypatch):
    cache, parsed = write(tmp_path / "c"), []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda s: parsed.append(1) or real(s))
    assert cache.rows[13]["source"] == "noise:13" and len(parsed) == 1
    assert [r["source"] for r in cache.rows[18:]] == ["noise:18", "noise:19"] and len(parsed) == 3
    assert cache.rows[-1]["source"] == "noise:19" and len(cache.rows) == 20
    assert [r["source"] for r in cache.rows] == cache.sources == [f"noise:{i}" for i in range(20)]
    with pytest.raises(IndexError, match="row 20 of a cache with 20"):
        cache.rows[20]
    assert pickle.loads(pickle.dumps(cache)).rows[9] == cache.rows[9]


def test_rows_that_do_not_fit_are_named(tmp_path):
    cache = write(tmp_path / "c")
    os.truncate(tmp_path / "c/latents-00001.jsonl", 150)
    with pytest.raises(ValueError, match=r"latents-00001.jsonl has 1 lines for 8 samples"):
        cache.rows[9]


@pytest.mark.parametrize("options", [{}, dict(flips=True)], ids=["", "flips"])
def test_the_system_is_asked_for_a_row_once(tmp_path, monkeypatch, options):
    """Rows of a shard are fetched together at their first reading; later they are in memory, or one
    page fault away."""
    cache, asked = write(tmp_path / "c", **options), []
    monkeypatch.setattr(
        cache_reader.MappedShards,
        "will_need",
        lambda self, whole, offset, rows: asked.append(rows.tolist()),
    )
    for index in ([0, 5, 17], [17, 6, 5], [6, 0]):
        cache.shards.read(np.array(index))
    assert [rows for rows in asked if rows] == [
        [r * num_views(cache.manifest) for r in rows] for rows in ([0, 5], [1], [6])
    ]
