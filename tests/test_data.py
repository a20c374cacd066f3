"""Reading, ids, templates, encoding by hand-written ids, the generated set, tokenizer conventions."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast

from distill.base.errors import UserError
from distill.config import load
from distill.config.data import GeneratorConfig, SplitConfig
from distill.config.template import TemplateConfig, named
from distill.data import micro, sets, world
from distill.data.encode import IGNORE, Collator, Encoded, Encoder, shift
from distill.data.examples import Example, fingerprint, make_examples, read
from distill.data.gpt2_tokens import gpt2_tokenizer, token_counts
from distill.data.micro import generate
from distill.data.templates import render
from distill.models.tokenizers import check_same_tokenizer, train_tokenizer

GOOD = {"instruction": "Say hi.", "input": "", "output": "Hi."}


class WordTokenizer:
    """One id a word: EOS and pad are both 0."""

    eos_token_id, pad_token_id = 0, 0
    all_special_tokens = ()

    def get_vocab(self):
        return {"x" * 40: 1}

    def __call__(self, text, add_special_tokens=True):
        return SimpleNamespace(input_ids=[1 + zlib.crc32(w.encode()) % 1000 for w in text.replace(">", " > ").split()])


def write(path, *lines):
    raw = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


# ------------------------------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "not JSON"),
        ('["a list"]', "a list, not an object"),
        ({"instruction": "a"}, "lacks output"),
        ({"instruction": "a", "output": "  "}, "empty response"),
        ({"instruction": "a", "output": []}, "empty response"),
        ({"instruction": "a", "output": [1]}, "output is a list"),
        ({"instruction": 3, "output": "b"}, "instruction is a number"),
        ('{"instruction": "a", "output": "\\ud800"}', "not UTF-8"),
        (b"\xff\xfe{}", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, bad, message):
    path = write(tmp_path / "d.jsonl", GOOD, bad)
    with pytest.raises(UserError, match=r"d\.jsonl:2: .*" + message):
        read(path)


def test_all_bad_lines_at_once_and_missing_or_empty_files(tmp_path):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / "d.jsonl", "x", GOOD, "y"))
    (problem,) = caught.value.problems
    assert "d.jsonl:1: not JSON" in problem and "(also 3)" in problem
    with pytest.raises(UserError, match="no such data file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no rows"):
        read(write(tmp_path / "e.jsonl"))


def test_ids_are_content_and_ordinal():
    row = ("a", "", ["b"], "")
    first, second, other = make_examples([row, row, ("a", "", ["c"], "")])
    assert len({first.id, second.id, other.id}) == 3
    assert make_examples([("z", "", ["z"], ""), row])[1].id == first.id
    assert fingerprint([first, other]) != fingerprint([other, first])


def test_references_input_and_topic(tmp_path):
    line = {
        "instruction": "i",
        "output": ["a", "b"],
        "category": "open_qa",
        "prompt": "ready-made",
        "input": None,
    }
    (example,) = read(write(tmp_path / "d.jsonl", line))
    assert (example.references, example.response, example.input, example.topic) == (
        ("a", "b"),
        "a",
        "",
        "open_qa",
    )


def test_local_sets_skip_limit_and_counts(tmp_path, capsys):
    rows = [{"instruction": f"q{i}", "output": "a"} for i in range(10)]
    write(tmp_path / "t.jsonl", *rows)
    config = load(["data=jsonl", f"data.root={tmp_path}", "data.train.file=t.jsonl", "data.train.limit=4",
                   "data.valid.file=t.jsonl", "data.valid.skip=4", "data.eval.test.file=t.jsonl",
                   "data.eval.test.expected=99"])  # fmt: skip
    train, valid = sets.train_and_valid(config)
    assert [e.instruction for e in train.examples] == ["q0", "q1", "q2", "q3"]
    assert [e.instruction for e in valid.examples] == [f"q{i}" for i in range(4, 10)]
    assert train.note == "4 of 10"
    sets.evaluation(config)
    assert "10 rows, where the papers have 99" in capsys.readouterr().out


def test_hub_sets_from_a_made_up_cache(tmp_path, monkeypatch):
    """The real hub code, offline, against a cache laid out as the hub lays it."""
    repo = tmp_path / "datasets--MiniLLM--dolly"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    write(snapshot / "raw.jsonl", *[{"instruction": f"q{i}", "output": "a"} for i in range(1005)])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    train, valid = sets.train_and_valid(load(["model=gpt2"]))
    assert len(valid.examples) == 1000 and [e.instruction for e in train.examples] == [
        f"q{i}" for i in range(1000, 1005)
    ]
    with pytest.raises(
        UserError, match=r"hf download MiniLLM/self-inst valid.jsonl --repo-type dataset\nwithout.*model=smollm2"
    ):
        sets.evaluation(load(["model=gpt2", "eval.sets=[self_inst]"]))


def test_generated_sets_are_cut_as_asked_and_unknown_names_are_refused():
    config = load(["model=micro", "data.train.limit=10", "data.eval.dolly.limit=5", "data.eval.dolly.skip=2"])
    train, _ = sets.train_and_valid(config)
    assert (len(train.examples), train.note) == (10, "10 of 6000")
    assert len(sets.evaluation(config)["dolly"].examples) == 5
    with pytest.raises(UserError, match="mine: the generated sets are dolly"):
        sets.evaluation(load(["model=micro", "data.eval.mine.title=Mine"]))


def test_a_local_set_without_a_file_says_which_key():
    data = load(["data=jsonl"]).data.model_copy(update={"root": "."})
    with pytest.raises(UserError, match=r"set data\.eval\.extra\.file"):
        sets._load(data, "extra", SplitConfig())


# ----------------------------------------------------------------------------------------------- templates, encoding
def test_templates_keep_braces_in_data():
    assert render(named("short"), "{input} {x}", "a{instruction}") == "{input} {x}\na{instruction}\n>"
    alpaca = render(named("alpaca"), "Do it.", "")
    assert alpaca.endswith("### Instruction:\nDo it.\n\n### Response:\n") and "### Input" not in alpaca
    assert "### Input:\nthis\n\n### Response:\n" in render(named("alpaca"), "Do it.", "this")


def test_one_shift_by_hand():
    ids, targets = shift([5, 6, 7], [8, 9, 0])
    assert ids == [5, 6, 7, 8, 9]
    assert targets == [IGNORE, IGNORE, 8, 9, 0]


def test_collator_keeps_eos_where_pad_is_eos():
    batch = Collator(pad_id=0)([Encoded("a", [5, 6], [7, 0]), Encoded("b", [5], [0])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 7, 0], [0, IGNORE, IGNORE]]
    assert batch["example_ids"] == ["a", "b"]


def test_an_eos_inside_the_response_survives():
    batch = Collator(pad_id=0)([Encoded("a", [5], [0, 7, 0])])
    assert batch["input_ids"].tolist() == [[5, 0, 7]] and batch["labels"].tolist() == [[0, 7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1]]


def examples_of_length(words, response=3):
    return make_examples([("go", " ".join(f"w{i}" for i in range(words)), [" ".join(["r"] * response)], "")])


@pytest.mark.parametrize(("way", "kept"), [("drop", 0), ("cut", 1), ("cut_right", 1)])
def test_overlong_prompts(way, kept):
    encoder = Encoder(WordTokenizer(), named("short"), max_prompt_length=8, overlong_prompt=way)
    result = encoder.prompts(examples_of_length(20))
    assert len(result.rows) == kept and sum(result.counts.values()) == 1
    if kept:
        assert len(result.rows[0].prompt) <= 8
        tail = WordTokenizer()(">").input_ids
        assert (result.rows[0].prompt[-1:] == tail) == (way == "cut")  # the template's end is kept, or lost


def published(tokenizer, example):
    """Prompt and response as the papers' preparation encodes them: together, without special tokens, cut behind as many
    tokens as the prompt has when it is encoded alone."""
    prompt = render(named("alpaca"), example.instruction, example.input)
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    both = tokenizer(prompt + example.response, add_special_tokens=False).input_ids
    return before, [*both, tokenizer.eos_token_id][len(before) :]


@pytest.fixture(scope="module")
def real_examples():
    folder = Path(load(["model=smollm2"]).paths.shared)
    return [e for name in ("dolly_dev", "self_inst", "sinst") for e in read(folder / f"{name}.jsonl")[:300]]


class SentencePiece:
    """The original library's tokenizer as LLaMA's is made: BPE, bytes for what is not in the vocabulary, BOS."""

    all_special_tokens = ()

    def __init__(self, texts, folder):
        lines = (line for text in texts for line in text.splitlines())
        options = {"model_type": "bpe", "byte_fallback": True, "split_digits": True}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_prefix=str(folder / "sp"), vocab_size=2000, minloglevel=2,
            normalization_rule_name="identity", remove_extra_whitespaces=False, **options,
        )  # fmt: skip
        self.processor = sentencepiece.SentencePieceProcessor(str(folder / "sp.model"))
        self.bos_token_id, self.eos_token_id = self.processor.bos_id(), self.processor.eos_id()

    def __call__(self, text, add_special_tokens=True):
        return SimpleNamespace(input_ids=self.processor.encode(text, add_bos=add_special_tokens))


@pytest.mark.parametrize("kind", ["gpt2's vocabulary", "sentencepiece", "gpt2", "opt", "llama"])
def test_ids_are_those_of_the_published_preparation(real_examples, kind, tmp_path):
    """GPT-2's real vocabulary, a tokenizer of the sentencepiece library, and the project's small ones."""
    texts = [render(named("alpaca"), e.instruction, e.input) + e.response for e in real_examples]
    if kind == "gpt2's vocabulary":
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=gpt2_tokenizer()._tokenizer, eos_token="<|endoftext|>")
    elif kind == "sentencepiece":
        tokenizer = SentencePiece(texts, tmp_path)
    else:
        tokenizer = train_tokenizer(kind, texts, 2000)
    expected = [published(tokenizer, example) for example in real_examples]
    encoded = Encoder(tokenizer, named("alpaca"), 10**6, "drop", bos=False).pairs(real_examples, 10**7)
    assert [(row.prompt, row.response) for row in encoded.rows] == expected
    assert not encoded.describe()  # no response was encoded apart
    bos = [tokenizer.bos_token_id] if kind in ("sentencepiece", "opt", "llama") else []
    with_bos = Encoder(tokenizer, named("alpaca"), 10**6, "drop").pairs(real_examples, 10**7)
    assert [(row.prompt, row.response) for row in with_bos.rows] == [([*bos, *p], response) for p, response in expected]
    apart = [tokenizer(e.response, add_special_tokens=False).input_ids for e in real_examples]
    changed = sum(row.response[:-1] != ids for row, ids in zip(encoded.rows, apart, strict=True))
    # Alike where a text is encoded as bytes; elsewhere the responses that begin with a word or number differ
    assert changed > 0.99 * len(real_examples) if kind in ("sentencepiece", "llama") else changed == 0


def test_a_token_over_the_border_leaves_the_response_encoded_apart():
    """Where both texts together have other tokens than the prompt and what follows, the response is encoded alone."""

    class Greedy(WordTokenizer):
        def __call__(self, text, add_special_tokens=True):
            return SimpleNamespace(input_ids=[zlib.crc32(w.encode()) for w in text.replace("> r", ">r").split()])

    template = TemplateConfig(name="t", without_input="{instruction} > ", with_input="{instruction}{input} > ")
    result = Encoder(Greedy(), template, 9, "drop").pairs(examples_of_length(0, 2), 20)
    alone = Greedy()("r r").input_ids
    assert result.rows[0].response == [*alone, 0] and result.describe() == "1 responses encoded apart from their prompt"


def test_overlong_responses_are_cut_and_get_no_eos():
    encoder = Encoder(WordTokenizer(), named("short"), max_prompt_length=8, overlong_prompt="drop")
    short = encoder.pairs(examples_of_length(2), max_length=20).rows[0]
    assert short.response[-1] == 0 and len(short.response) == 4
    result = encoder.pairs(examples_of_length(2, response=30), max_length=10)
    assert len(result.rows[0].prompt) + len(result.rows[0].response) == 10
    assert result.rows[0].response[-1] != 0 and result.describe() == "1 responses cut"
    with pytest.raises(UserError, match="overlong_prompt=cut"):
        encoder.pairs(examples_of_length(50), max_length=100)


# ------------------------------------------------------------------------------------------------------ generated set
SIZES = GeneratorConfig(seed=7, train=500, valid=40, eval=40)


def test_generated_sets_do_not_leak_and_repeat():
    generated = generate(SIZES)
    prompts = {name: [(e.instruction, e.input) for e in examples] for name, examples in generated.items()}
    assert {n: len(p) for n, p in prompts.items()} == {"train": 500} | dict.fromkeys(
        ["valid", "dolly", "vicuna", "self_inst", "sni", "unni"], 40
    )
    for name, held in prompts.items():
        if name != "train":
            assert not set(held) & set(prompts["train"]), name
            assert len(set(held)) == len(held), name
    generate.cache_clear()
    assert {n: fingerprint(e) for n, e in generate(SIZES).items()} == {n: fingerprint(e) for n, e in generated.items()}
    other = generate(SIZES.model_copy(update={"seed": 8}))
    assert fingerprint(other["train"]) != fingerprint(generated["train"])


def test_generated_answers_are_right():
    """Sums are reckoned anew from the question's text; references are several and different."""
    several = sums = 0
    for example in generate(SIZES.model_copy(update={"eval": 200}))["dolly"]:
        several += len(example.references) > 1
        assert len(set(example.references)) == len(example.references)
        if found := re.search(r"(\d+) (?:\+|plus|and) (\d+)[?.]$", example.instruction):
            sums += 1
            assert all(re.search(rf"\b{sum(map(int, found.groups()))}\.", answer) for answer in example.references)
        if example.topic == "information_extraction":  # all that is listed is in the text, in its order
            for answer in example.references:
                listed = re.split(r" are ", answer, maxsplit=1)[1].rstrip(".").replace(" and ", ", ").split(", ")
                places = [example.input.index(word) for word in listed]
                assert places == sorted(places)
    assert several > 150 and sums > 3


WORLD = world.build_world(7, 40, 12, 120)


def words(examples):
    return {word for e in examples for word in re.findall(r"[A-Z][a-z]+", f"{e.instruction} {e.input}")}


def phrasing(example):
    """The instruction without the names, numbers and things that are asked about."""
    known = {*WORLD.people, *WORLD.towns, *WORLD.strangers[0], *WORLD.strangers[1], *WORLD.unseen[0], *WORLD.unseen[1]}
    things = {*world.ANIMALS, *world.FOODS, "an", "a"}
    return " ".join("_" if w in known | things or w.isdigit() else w for w in re.findall(r"\w+", example.instruction))


def test_generated_sets_are_graded():
    sets = generate(SIZES.model_copy(update={"train": 4000, "eval": 150}))
    topics = {"open_qa", "general_qa", "closed_qa", "information_extraction", "summarization", "brainstorming",
              "creative_writing", "classification"}  # fmt: skip
    for name in ("train", "dolly", "self_inst", "vicuna", "unni"):
        assert {e.topic for e in sets[name]} == topics, name
    unseen = {*WORLD.unseen[0], *WORLD.unseen[1]}
    for name in ("train", "valid", "dolly", "self_inst", "vicuna"):
        assert not words(sets[name]) & unseen, name
    for name in ("sni", "unni"):
        strangers = {*WORLD.strangers[0], *WORLD.strangers[1]}
        assert words(sets[name]) & unseen and not words(sets[name]) & strangers, name
    assert all(words([e]) & unseen for e in sets["sni"])
    asked = {name: {phrasing(e) for e in examples if e.topic in ("closed_qa", "summarization")}
             for name, examples in sets.items()}  # fmt: skip
    for name in ("self_inst", "unni"):
        assert asked[name] and not asked[name] & asked["train"], name
    assert asked["dolly"] <= asked["train"] and asked["vicuna"] <= asked["train"]
    length = {name: np.mean([len(e.response.split()) for e in examples]) for name, examples in sets.items()}
    assert length["vicuna"] > 1.4 * length["dolly"] and length["unni"] > 1.1 * length["dolly"]
    assert abs(length["self_inst"] / length["dolly"] - 1) < 0.15


def test_a_world_larger_than_its_names_is_refused():
    with pytest.raises(UserError, match="more than the 320 names that there are"):
        world.build_world(7, 40, 12, 200)


def test_a_set_larger_than_its_questions_is_refused():
    recipe = micro.Recipe({micro.tasks.brainstorming: 1.0}, micro.Grade(unseen_names=True, longer=1.0))
    with pytest.raises(UserError, match="make it smaller"):
        micro._draw(np.random.default_rng(0), WORLD, recipe, 500, set())


# ---------------------------------------------------------------------------------------------- tokenizer conventions
TEXTS = [f"{e.instruction}\n{e.input}\n>{e.response}" for e in generate(SIZES)["train"]]


@pytest.fixture(scope="module")
def tokenizers():
    return {c: train_tokenizer(c, TEXTS, 420) for c in ("gpt2", "opt", "llama")}


def test_conventions(tokenizers):
    gpt2, opt, llama = (tokenizers[c] for c in ("gpt2", "opt", "llama"))
    assert (
        gpt2.pad_token_id == gpt2.eos_token_id
        and gpt2("a b").input_ids == gpt2("a b", add_special_tokens=False).input_ids
    )
    assert (opt.pad_token_id, opt.eos_token_id) == (1, 2) and opt("a").input_ids[0] == 2
    assert llama.pad_token_id is None and llama("a").input_ids[0] == llama.bos_token_id == 1
    apart = llama("Paris", add_special_tokens=False)
    assert llama.convert_ids_to_tokens(apart.input_ids)[0].startswith("▁")  # sentencepiece's space
    for tokenizer in tokenizers.values():
        for text in ("Paris is big.", "naïve  東京\n x"):
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_prompt_and_response_are_encoded_apart(tokenizers):
    for tokenizer in tokenizers.values():
        encoder = Encoder(tokenizer, named("alpaca"), 400, "drop")
        (row,) = encoder.pairs(make_examples([("Say hi.", "", ["Hi there."], "")]), 512).rows
        assert row.prompt == tokenizer(render(named("alpaca"), "Say hi.", "")).input_ids
        assert row.response[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row.response[:-1]) == "Hi there."


def test_different_tokenizers_are_refused(tokenizers):
    check_same_tokenizer(tokenizers["gpt2"], train_tokenizer("gpt2", TEXTS, 420))
    with pytest.raises(UserError, match="different tokenizers"):
        check_same_tokenizer(tokenizers["gpt2"], tokenizers["opt"])
    with pytest.raises(UserError, match="different tokenizers"):  # equal size is not enough
        check_same_tokenizer(tokenizers["gpt2"], train_tokenizer("gpt2", [t[::-1] for t in TEXTS], 420))


# ----------------------------------------------------------------------------------------------------------- raw sets
def test_unnatural_instructions_as_its_authors_keep_them(tmp_path):
    """A line is an instruction with its instances."""
    line = {
        "instruction": "Say it again.",
        "instances": [{"input": "yes", "output": "yes", "constraints": "None."}, {"input": "no", "output": "no"}],
    }
    first, second = read(write(tmp_path / "core_data.jsonl", line))
    assert (first.instruction, first.input, first.references) == ("Say it again.", "yes", ("yes",))
    assert (second.input, second.references) == ("no", ("no",))
    with pytest.raises(UserError, match=r"core_data\.jsonl:1: an instance is"):
        read(write(tmp_path / "core_data.jsonl", {"instruction": "i", "instances": [{"input": "a"}]}))


def task(*outputs):
    instances = [{"input": f"in {n}", "output": output} for n, output in enumerate(outputs)]
    return json.dumps({"Definition": ["Do the thing."], "Instances": instances})


def test_super_natural_instructions_as_a_collection_and_as_task_files(tmp_path):
    """Of the collection its test tasks, of a task its first hundred instances; a plain folder is its task files."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "splits/default").mkdir(parents=True)
    (tmp_path / "tasks/task2_b.json").write_text(task(["a", "b"]))
    (tmp_path / "tasks/task1_a.json").write_text(task(*[["x"]] * 120))
    (tmp_path / "tasks/task3_train.json").write_text(task(["not of the test split"]))
    (tmp_path / "splits/default/test_tasks.txt").write_text("task2_b\ntask1_a\n")
    found = read(tmp_path)
    assert len(found) == 101 and found[-1].references == ("a", "b") and found[0].instruction == "Do the thing."
    assert len(read(tmp_path / "tasks")) == 102
    (tmp_path / "tasks/task2_b.json").write_text('{"Instances": []}')
    with pytest.raises(UserError, match=r"task2_b\.json: a task file has 'Definition' .*; Definition is missing and"):
        read(tmp_path)
    (tmp_path / "tasks/task2_b.json").write_text(task("", "kept"))
    with pytest.raises(UserError, match=r"task2_b\.json: empty response"):
        read(tmp_path)
    assert len(read(tmp_path, empty=True)) == 101  # raw sets have some
    (tmp_path / "tasks/task2_b.json").unlink()
    with pytest.raises(UserError, match=r"names 1 tasks that are not there, such as .*task2_b\.json"):
        read(tmp_path)


def test_a_published_set_is_taken_whole_and_a_raw_one_is_filtered_by_gpt2_tokens(tmp_path, capsys):
    """11 tokens of the first reference, whatever its words; of a raw set 10,000 by content, whatever its order."""
    long, short = " ".join(["word"] * 11), "internationalisation"  # 11 words; 1 word of a few tokens
    pairs = [{"input": f"q{n}", "output": [long, short] if n % 2 else [short, long]} for n in range(10)]
    published = [{"instruction": "i", **pair} for pair in pairs]
    raw = [{"instruction": "i", "instances": [pair]} for pair in pairs]
    split = load(["data=dolly", "model=gpt2"]).data.eval["unni"]
    assert (split.min_gpt2_tokens, split.first, split.sample, split.expected) == (11, 10000, 10000, 10000)

    def chosen(rows, **changes):
        words = [f"data.eval.unni.{key}={value}" for key, value in changes.items()]
        path = write(tmp_path / "u.jsonl", *rows)
        config = load(["data=dolly", "model=gpt2", f"data.root={path.parent}", "data.eval.unni.file=u.jsonl",
                       "eval.sets=[unni]", *words])  # fmt: skip
        return sets.evaluation(config)["unni"]

    whole = chosen(published)
    assert len(whole.examples) == 10 and (whole.counted, whole.papers) == (10, 10000)
    assert "10 rows, where the papers have 10000" in capsys.readouterr().out
    assert [e.input for e in chosen(published, first=3).examples] == ["q0", "q1", "q2"]
    assert [e.input for e in chosen(raw).examples] == [f"q{n}" for n in range(1, 10, 2)]
    few, turned = chosen(raw, sample=3), chosen(raw[::-1], sample=3)
    assert len(few.examples) == 3 and few.examples == turned.examples[::-1] and few.counted == 3
    with pytest.raises(UserError, match=r"data\.eval\.unni\.min_gpt2_tokens=11 keeps none of its rows"):
        chosen([{"instruction": "i", "instances": [{"input": "", "output": short}]}])


def test_tokens_are_counted_with_gpt2s_vocabulary():
    assert gpt2_tokenizer().encode("Hello world").ids == [15496, 995]  # as OpenAI's release encodes it
    assert token_counts(["", "Hello world", "\n\n"]) == [0, 2, 1]


def test_super_natural_instructions_is_whole():
    """The papers' 1,694 rows, which a filter by words would make 1,183; each has at least 11 tokens."""
    folder = load(["model=smollm2"]).paths.shared
    words = ["data=dolly", "model=gpt2", f"data.root={folder}", "eval.sets=[sni]"]
    (sni,) = sets.evaluation(load(words)).values()
    assert len(sni.examples) == 1694 and sni.counted is None
    assert min(token_counts([e.response for e in sni.examples])) == 11
    assert sum(len(e.response.split()) >= 11 for e in sni.examples) == 1183
    some = sets.evaluation(load(["model=smollm2", "eval.sets=[sni]"]))["sni"]
    assert len(some.examples) == 300 and (some.counted, some.papers) == (300, 1694)


def test_min_words_of_an_older_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"min_words does not exist any more: .* set min_gpt2_tokens for a raw set"):
        load(["data=dolly", "model=gpt2", "+data.eval.sni.min_words=11"])


@pytest.mark.parametrize("rows", [5, 12])
def test_counts_of_a_hub_file_are_told_too(tmp_path, capsys, monkeypatch, rows):
    """Of a published file the first rows are taken; fewer than the papers' number are told."""
    path = write(tmp_path / "u.jsonl", *({"instruction": f"q{n}", "output": "x"} for n in range(rows)))
    monkeypatch.setattr(sets, "_from_hub", lambda name, split: path)
    small = ["data.eval.unni.first=10", "data.eval.unni.expected=10"]
    config = load(["data=dolly", "model=gpt2", "eval.sets=[unni]", *small])
    (found,) = sets.evaluation(config).values()
    assert len(found.examples) == min(rows, 10) and found.examples[0].instruction == "q0"
    assert ("5 rows, where the papers have 10" in capsys.readouterr().out) == (rows == 5)


def test_plain_text_for_pretraining(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\n three \n")
    write(tmp_path / "b.jsonl", {"text": "x"}, {"text": "y\n\nz", "more": 1})

    def texts(*words):
        return sets.pretraining(load(["model=micro", *words]).data)

    assert texts() == [] and texts(f"data.pretrain.file={tmp_path}/a.txt") == ["one\ntwo", "three"]
    assert texts(f"data.pretrain.file={tmp_path}/b.jsonl") == ["x", "y\n\nz"]
    assert texts(f"data.pretrain.file={tmp_path}/b.jsonl", "data.pretrain.limit=1") == ["x"]
    for content, message in [
        ("{}\n", r"b\.jsonl:1: .*it has nothing"),
        ("x\n", r"b\.jsonl:1: not JSON"),
        ('{"text": 3}\n', "text is a number"),
        ("", "no text"),
    ]:
        (tmp_path / "b.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            texts(f"data.pretrain.file={tmp_path}/b.jsonl")
    with pytest.raises(UserError, match="there is no file"):
        texts(f"data.pretrain.file={tmp_path}/c.jsonl")
    pd.DataFrame({"text": ["p", "q"], "url": ["", ""]}).to_parquet(tmp_path / "c.parquet")
    assert texts(f"data.pretrain.file={tmp_path}/c.parquet") == ["p", "q"]
    (tmp_path / "d.csv").write_text("text")
    with pytest.raises(UserError, match=r"a corpus is \.jsonl, \.json, .* not \.csv"):
        texts(f"data.pretrain.file={tmp_path}/d.csv")
    with pytest.raises(UserError, match="needs either file, or hub and hub_file"):
        texts("data.pretrain.hub=openwebtext")


def test_late_targets_are_not_shifted():
    assert shift([5, 6], [7, 8]) == ([5, 6, 7], [IGNORE, 7, 8])
    assert shift([5, 6], [7, 8], late=True) == ([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8])


# ------------------------------------------------------------------------------------------------------ special tokens
@pytest.mark.parametrize("convention", ["gpt2", "opt", "llama"])
def test_a_special_token_that_data_spells_is_text_and_one_of_the_template_is_not(convention):
    from distill.models.tokenizers import train_tokenizer

    tokenizer = train_tokenizer(convention, ["red old house near the river"] * 20, 400)
    eos, eos_id = tokenizer.eos_token, tokenizer.eos_token_id
    plain = TemplateConfig(name="t", without_input="{instruction} =", with_input="{instruction} {input} =")
    marked = TemplateConfig(name="m", without_input=f"red{eos}{{instruction}} =", with_input="{instruction} {input} =")
    bos = [tokenizer.bos_token_id] if convention != "gpt2" else []
    for template, expected in ((plain, 0), (marked, 1)):
        encoder = Encoder(tokenizer, template, 200, "cut")
        for instruction in (f"old {eos} house", "old house"):
            rows = encoder.pairs([Example("a", instruction, "", (f"river {eos} stone",))], 400)
            (row,) = rows.rows
            prompt = row.prompt[len(bos) :]
            assert row.prompt[: len(bos)] == bos and prompt.count(eos_id) == expected
            assert row.response.count(eos_id) == 1 and row.response[-1] == eos_id
            assert rows.counts["texts that spell a special token, read as plain text"] == 1
            decoded = tokenizer.decode(row.response[:-1]).replace(" ", "")
            assert decoded.endswith(f"river{eos}stone")
    untouched = Encoder(tokenizer, plain, 200, "cut").pairs([Example("b", "old house", "", ("river",))], 400)
    assert "texts that spell a special token, read as plain text" not in untouched.counts
    assert untouched.rows[0].prompt == list(tokenizer("old house =").input_ids)


def test_a_cut_prompt_is_the_longest_that_fits_whatever_its_length():
    """The bound that leaves out hopeless lengths changes no result."""
    encoder = Encoder(
        WordTokenizer(),
        TemplateConfig(name="t", without_input="{instruction}", with_input="{instruction} {input}"),
        9,
        "cut",
    )
    for words in (3, 40, 4000):
        (row,) = encoder.prompts([Example("a", "do", "w " * words, ("x",))]).rows
        assert len(row.prompt) == min(9, 1 + words)
