"""Benchmarks through lm-eval: a small local task, and what is said where a task or its data is missing."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from distill import table
from distill.base.errors import UserError
from distill.config import load
from distill.config.evaluation import BenchmarksConfig
from distill.evaluation.benchmarks import Benchmark, check
from distill.models.load import load_model, load_tokenizer
from distill.pipeline.request import requested
from distill.results import experiment
from tests.making import student

QUESTIONS = [
    {"question": "What does two and two make?", "choices": [" four", " a house", " the"], "label": 0},
    {"question": "Which is a colour?", "choices": [" stone", " red"], "label": 1},
    {"question": "Which is a number?", "choices": [" a dog", " seven", " it is so"], "label": 1},
    {"question": "Which is an animal?", "choices": [" cat", " green"], "label": 0},
    {"question": "Which is a fruit?", "choices": [" of", " window", " pear"], "label": 2},
]
TASK = """task: things
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with one task on local data, and datasets' cache in a scratch place."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "things.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "things.yaml").write_text(TASK.format(data=data))
    return folder


def test_a_table_of_a_local_task(tasks, tmp_path, monkeypatch):
    """Accuracy is that of the larger log-likelihood, added up by hand; a second run finds the rows finished."""
    (tmp_path / "experiments/own").mkdir(parents=True)
    (tmp_path / "experiments/own/things.yaml").write_text(
        "title: Things\npaper: own\nmodel: gpt2\nsources: []\nagainst: FKL\n"
        'columns: {Things: {dataset: benchmarks, metric: "things:acc:0"}}\nrows: {FKL: {overrides: [loss=fkl]}}\n'
    )
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path / "experiments")
    words = [
        "own/things", "debug=smoke", f"eval.benchmarks.tasks={tasks}", f"paths.store={tmp_path}/store",
        f"paths.results={tmp_path}/results", "seed=10",
    ]  # fmt: skip
    assert table.main(words) == 0
    path = tmp_path / "results/gpt2/own/things_long.csv"
    lines = pd.read_csv(path)
    lines = lines[lines["dataset"] == "benchmarks"].set_index("row")
    made, _ = requested(words)
    weights = student(made.rows["FKL"][0].plan)
    model, tokenizer = load_model(weights).eval(), load_tokenizer(weights)
    right = 0
    for one in QUESTIONS:
        prompt = tokenizer(f"Question: {one['question']}\nAnswer:", add_special_tokens=False).input_ids
        sums = []
        for choice in one["choices"]:
            ids = torch.tensor(tokenizer(choice, add_special_tokens=False).input_ids)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
            sums.append(logits.log_softmax(-1).gather(1, ids[:, None]).sum().item())
        right += sums.index(max(sums)) == one["label"]
    assert float(lines.loc["FKL", "value"]) == pytest.approx(100 * right / len(QUESTIONS))
    assert set(lines.index) == {"Teacher", "SFT", "FKL"} and set(lines["n"]) == {5}
    before = path.read_bytes()
    assert table.main(words) == 0 and path.read_bytes() == before
    assert not list((tmp_path / "store").glob("evaluate/*"))  # no text was written
    with pytest.raises(UserError, match="things:f1:0: things measures acc"):
        check([Benchmark("things", "f1", 0)], BenchmarksConfig(tasks=str(tasks)))
    assert table.main([*words, "eval.benchmarks.limit=2"]) == 0  # other questions are another metric
    short = pd.read_csv(path)
    short = short[short["dataset"] == "benchmarks"]
    assert set(short["n"]) == {2, 5} and short["metric"].nunique() == 2


def test_what_is_missing_is_said_before_anything_runs(tasks):
    with pytest.raises(UserError) as caught:
        check([Benchmark("winogrande", "acc", 0), Benchmark("nothing", "acc", 0)], BenchmarksConfig())
    data, task = caught.value.problems
    assert "winogrande: its data is neither in the cache nor to be had" in data and "eval.benchmarks.tasks=" in data
    assert "no task nothing" in task
    check([Benchmark("things", "acc", 0)], BenchmarksConfig(tasks=str(tasks)))
    with pytest.raises(UserError, match="no such folder"):
        check([Benchmark("things", "acc", 0)], BenchmarksConfig(tasks="/nowhere"))
    assert load(["model=gpt2", f"eval.benchmarks.tasks={tasks}"]).eval.benchmarks.tasks == str(tasks)
