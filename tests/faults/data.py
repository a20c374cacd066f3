"""Cases about files of data (kinds i, j, k, l)."""

from __future__ import annotations

import gzip
import json

from tests.faults.models import refused_before_work
from tests.faults.workshop import Outcome, Workshop, case, rows, write

GOOD = rows(16)


# --------------------------------------------------------------------------- j. truthiness for None
@case("j", "input is 0", "train.jsonl:1: input is a number (0)")
def input_is_zero(w: Workshop) -> Outcome:
    w.data(train=[{**GOOD[0], "input": 0}, *GOOD[1:]])
    return refused_before_work(w.pair())


@case("j", "input is false", "train.jsonl:1: input is false")
def input_is_false(w: Workshop) -> Outcome:
    w.data(train=[{**GOOD[0], "input": False}, *GOOD[1:]])
    return refused_before_work(w.pair())


@case("j", "topic is 0", "train.jsonl:2: topic is a number (0)")
def topic_is_zero(w: Workshop) -> Outcome:
    w.data(train=[GOOD[0], {**GOOD[1], "topic": 0}])
    return refused_before_work(w.pair())


@case("j", "an output is a list with 0", "test.jsonl:1: output is a list with a number")
def output_with_zero(w: Workshop) -> Outcome:
    w.data(test=[{**GOOD[0], "output": ["red", 0]}])
    return refused_before_work(w.pair())


@case("j", "input is null, empty or missing", code=0)
def input_is_nothing(w: Workshop) -> Outcome:
    w.data(train=[{**GOOD[0], "input": None}, {**GOOD[1], "input": ""}, *GOOD[2:]])
    return w.pair("loss=sft")


# --------------------------------------------------------------------------- k. files as people have them
@case("k", "a byte order mark", code=0)
def byte_order_mark(w: Workshop) -> Outcome:
    w.data(train=b"\xef\xbb\xbf" + "\n".join(map(json.dumps, GOOD)).encode())
    return w.pair("loss=sft")


@case("k", "a JSON list over many lines", code=0)
def json_list(w: Workshop) -> Outcome:
    write(w.data() / "train.json", json.dumps(GOOD, indent=2))
    return w.pair("loss=sft", "data.train.file=train.json")


@case("k", "one object with a list of records", code=0)
def list_in_an_object(w: Workshop) -> Outcome:
    write(w.data() / "train.json", json.dumps({"version": 1, "data": GOOD}, indent=1))
    write(w.data() / "valid.json", json.dumps({"data": GOOD[:4]}))
    return w.pair("loss=sft", "data.train.file=train.json", "data.valid.file=valid.json")


@case("k", "a parquet file", "train.parquet: it is parquet", "to_json")
def parquet(w: Workshop) -> Outcome:
    write(w.data() / "train.parquet", b"PAR1\x15\x04\x15\xff")
    return refused_before_work(w.pair("loss=sft", "data.train.file=train.parquet"))


@case("k", "latin-1", "train.jsonl:1: not UTF-8 (perhaps latin-1)", "(also 2)")
def latin_1(w: Workshop) -> Outcome:
    w.data(
        train='{"instruction": "caf\u00e9", "output": "b"}\n{"instruction": "\u00e9", "output": "b"}\n'.encode(
            "latin-1"
        )
    )
    outcome = refused_before_work(w.pair("loss=sft"))
    assert len(outcome.errors) == 1
    return outcome


@case("k", "brackets without end", "brackets within brackets too deep")
def deep(w: Workshop) -> Outcome:
    w.data(train="[" * 100_000)
    return refused_before_work(w.pair("loss=sft"))


@case("k", "a key of data.fields that does not exist", "data.fields.instructions")
def unknown_field(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", "data.fields={instructions: prompt}"))


@case("k", "a corpus of less than one block", "characters are less than one block")
def small_corpus(w: Workshop) -> Outcome:
    write(w.data() / "corpus.txt", "red old")
    return refused_before_work(w.pair("loss=fkl", "loss.w_lm=0.5", "data.pretrain.file=corpus.txt"))


@case("k", "a gzipped file", code=0)
def gzipped(w: Workshop) -> Outcome:
    write(w.data() / "train.jsonl.gz", gzip.compress("\n".join(map(json.dumps, GOOD)).encode()))
    return w.pair("loss=sft", "data.train.file=train.jsonl.gz")


@case("k", "a gzipped file that was cut off", "train.jsonl.gz: damaged gzip archive")
def gzipped_and_cut_off(w: Workshop) -> Outcome:
    packed = gzip.compress("\n".join(map(json.dumps, GOOD * 50)).encode())
    write(w.data() / "train.jsonl.gz", packed[: len(packed) // 2])
    return refused_before_work(w.pair("loss=sft", "data.train.file=train.jsonl.gz"))


@case("k", "UTF-16", "it is UTF-16", "iconv")
def utf_16(w: Workshop) -> Outcome:
    w.data(train="\n".join(map(json.dumps, GOOD)).encode("utf-16"))
    return refused_before_work(w.pair("loss=sft"))


@case(
    "k",
    "other field names, without saying so",
    "lacks instruction and output",
    "data.fields={instruction: prompt,output: completion}",
)
def other_names(w: Workshop) -> Outcome:
    w.data(train=_renamed())
    return refused_before_work(w.pair("loss=sft"))


@case("k", "other field names, given by data.fields", code=0)
def other_names_given(w: Workshop) -> Outcome:
    w.data(train=_renamed(), valid=_renamed(), test=_renamed())
    return w.pair("loss=sft", "data.fields={instruction: prompt,output: completion}")


@case("k", "no JSON at all", "train.jsonl is JSON; a data file is")
def no_json(w: Workshop) -> Outcome:
    w.data(train="instruction,output\nred,green\nold,new\n")
    outcome = refused_before_work(w.pair("loss=sft"))
    assert len(outcome.errors) == 1
    return outcome


@case("k", "a corpus with a byte order mark, gzipped", code=0)
def corpus_gzipped(w: Workshop) -> Outcome:
    text = b"\xef\xbb\xbf" + b"red old house near the river\n\n" * 60
    write(w.data() / "corpus.txt.gz", gzip.compress(text))
    return w.pair("loss=fkl", "loss.w_lm=0.5", "data.pretrain.file=corpus.txt.gz")


@case("k", "a task file whose definition is an empty list", "(a list of objects); Definition is a list and Instances")
def task_without_a_definition(w: Workshop) -> Outcome:
    write(w.folder / "data/tasks/task1.json", json.dumps({"Definition": [], "Instances": [{"output": ["a"]}]}))
    return refused_before_work(w.pair("loss=sft", "data.eval.test.file=tasks"))


# --------------------------------------------------------------------------- l. text that spells a special token
@case(
    "l",
    "a response spells the token that ends a text",
    "1 texts that spell a special token, read as plain text",
    code=0,
)
def spells_the_end(w: Workshop) -> Outcome:
    w.data(train=[{**GOOD[0], "output": "red <|endoftext|> green"}, *GOOD[1:]])
    return w.pair("loss=sft")


@case("l", "a prompt of the evaluation spells one", "1 texts that spell a special token", code=0)
def prompt_spells_the_end(w: Workshop) -> Outcome:
    w.data(test=[{**GOOD[0], "instruction": "<|endoftext|> red"}, *GOOD[1:]])
    return w.pair("loss=sft")


# --------------------------------------------------------------------------- i. a metric that cannot move
CHINESE = [{"instruction": f"\u95ee\u9898 {i}", "output": "\u7b54\u6848" * (1 + i % 3)} for i in range(16)]


@case(
    "i",
    "ROUGE-L cannot score Chinese text, and selects the checkpoint",
    "eval.rouge_tokenizer",
    "selected by loss",
    code=0,
)
def chinese(w: Workshop) -> Outcome:
    w.data(train=CHINESE, valid=CHINESE[:4], test=CHINESE[:4])
    return w.pair("loss=sft", "train.student.select=rouge_l")


@case("i", "Chinese references of which one has a digit", "no word in the references of 3 of 4 rows", code=0)
def chinese_with_a_digit(w: Workshop) -> Outcome:
    test = [{**row, "output": row["output"] + ("7" if place == 0 else "")} for place, row in enumerate(CHINESE[:4])]
    w.data(test=test)
    return w.pair("loss=sft")


@case("i", "a paper's table with another tokenizer of ROUGE-L", "do not compare with those that they print", code=0)
def table_with_another_tokenizer(w: Workshop) -> Outcome:
    table = ("abkd/losses_gpt2", "model=gpt2", "debug=smoke", "rows=[FKLD]", "seed=10")
    return w.command("table", *table, "eval.rouge_tokenizer=characters", *w.words)


@case("i", "the same with a tokenizer for other scripts", code=0)
def chinese_by_characters(w: Workshop) -> Outcome:
    w.data(train=CHINESE, valid=CHINESE[:4], test=CHINESE[:4])
    outcome = w.pair("loss=sft", "train.student.select=rouge_l", "eval.rouge_tokenizer=characters")
    assert "selected by loss" not in outcome.text
    assert "rouge_l_characters" in (w.folder / "results/gpt2/runs/long.csv").read_text()
    return outcome


def _renamed() -> list[dict[str, str]]:
    return [{"prompt": row["instruction"], "completion": row["output"]} for row in GOOD]
