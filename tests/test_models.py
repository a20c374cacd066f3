"""Base weights: random ones of each architecture, the wheel's, a student cut out of its teacher, adapters, supplied."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_gpt2, tiny_llama, tiny_opt

from distill.base.errors import UserError
from distill.config.model import LoraConfig
from distill.models import create
from distill.models.load import Weights, add_lora, check_positions, last_hidden, load_model, supplied, without_adapter

BATCHES = [{"input_ids": torch.arange(1, 13).view(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}]
MAKERS = [tiny_gpt2, tiny_llama, tiny_opt]


@pytest.mark.parametrize("make", MAKERS)
def test_block_influence_by_hand(make):
    """Against hidden states that the library gives out (the last one is after the final norm, so it is left aside)."""
    model = make(layers=4)
    influence = create.block_influence(model, BATCHES)
    states = model(**BATCHES[0], output_hidden_states=True).hidden_states
    mask = BATCHES[0]["attention_mask"].bool()
    for i in range(3):
        expected = 1 - torch.cosine_similarity(states[i], states[i + 1], dim=-1)[mask].mean()
        assert influence[i] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_keeping_all_layers_changes_nothing_and_some_skips_the_rest(make):
    model = make(layers=4)
    whole = create.keep_layers(model, [0, 1, 2, 3])
    torch.testing.assert_close(whole(**BATCHES[0]).logits, model(**BATCHES[0]).logits)
    pruned = create.keep_layers(model, [0, 2]).eval()
    assert pruned.config.num_hidden_layers == 2
    _, layers = create._layers(model)
    for index in (1, 3):  # a skipped layer is one that hands its input on
        layers[index].forward = lambda hidden_states, *a, **k: hidden_states
    torch.testing.assert_close(pruned(**BATCHES[0]).logits, model(**BATCHES[0]).logits)
    pruned.generate(BATCHES[0]["input_ids"], max_new_tokens=2)  # the cache's layer numbers are right


@pytest.mark.parametrize("make", MAKERS)
def test_last_hidden_and_head_give_the_models_logits(make):
    model = make()
    hidden = last_hidden(model, **BATCHES[0])
    torch.testing.assert_close(model.get_output_embeddings()(hidden), model(**BATCHES[0]).logits)


def test_adapters_save_load_and_merge(tmp_path):
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"])
    adapted = add_lora(base, lora)
    trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in n for n in trainable)
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "lora_B" in n:
                p.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    weights = Weights(str(tmp_path / "base"), None, str(tmp_path / "adapter"))
    merged, trained_on = load_model(weights), load_model(weights, merge=False)
    expected = adapted(**BATCHES[0]).logits
    torch.testing.assert_close(merged(**BATCHES[0]).logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trained_on.eval()(**BATCHES[0]).logits, expected, atol=1e-4, rtol=1e-4)
    assert any(p.requires_grad for p in trained_on.parameters())
    assert without_adapter(trained_on) is not trained_on
    with pytest.raises(UserError, match="does not have"):
        add_lora(tiny_gpt2(), lora)


def test_supplied_checkpoints(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "model")
    assert supplied(str(tmp_path / "model"), None) == Weights(str(tmp_path / "model"))
    assert supplied("MiniLLM/teacher-gpt2-1.5B@abc", None) == Weights("MiniLLM/teacher-gpt2-1.5B", "abc")
    assert supplied("gpt2", None).revision == "main"
    with pytest.raises(UserError, match="no such folder"):
        supplied("./nowhere", None)
    with pytest.raises(UserError, match=r"holds no model: neither config\.json"):
        supplied(str(tmp_path), None)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert supplied(str(tmp_path / "adapter"), Weights("b", "r")) == Weights("b", "r", str(tmp_path / "adapter"))
    with pytest.raises(UserError, match="holds an adapter"):
        supplied(str(tmp_path / "adapter"), None)


def test_an_unreachable_hub_says_what_to_run_and_what_works_without():
    with pytest.raises(UserError, match=r"run first: hf download nobody/nothing\nwithout the hub: .*debug=smoke"):
        load_model(Weights("nobody/nothing", "main"))


def test_the_wheel_becomes_plain_tied_fp32(tmp_path):
    """The real wheel: what is saved loads again, tied, without a quantization config, and writes English."""
    model, tokenizer = create.convert_wheel()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    del model
    again = load_model(Weights(str(tmp_path)))
    assert again.dtype == torch.float32 and not hasattr(again.config, "quantization_config")
    assert again.lm_head.weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    written = tokenizer.decode(again.generate(**ids, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in written


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    (tmp_path / create.GGUF).write_bytes(b"other")
    monkeypatch.setattr(create, "wheel_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="other weights than known"):
        create.convert_wheel()


def test_lengths_beyond_the_models_positions_are_refused():
    check_positions(tiny_gpt2().config, 128, "train.max_length")
    with pytest.raises(UserError, match=r"train\.max_length ask for 129 positions, and gpt2 has 128"):
        check_positions(tiny_gpt2().config, 129, "train.max_length")


def test_a_missing_wheel_says_what_to_run(monkeypatch):
    monkeypatch.setattr(create, "WHEEL", "no_such_wheel")
    with pytest.raises(UserError, match=r"make smollm2.*model\.source=hub"):
        create.wheel_folder()
