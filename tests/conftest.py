"""Shared pieces: small models built without a random draw that a test does not own, scratch folders, offline."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from distill.config import load
from distill.config.schema import Config

VOCAB = 61


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def smoke(tmp_path):
    """A function from overrides to a smoke config whose folders are scratch."""

    def make(*overrides: str) -> Config:
        folders = [f"paths.store={tmp_path}/store", f"paths.results={tmp_path}/results"]
        return load(["debug=smoke", *folders, *overrides])

    return make


def tiny_gpt2(layers: int = 2, hidden: int = 16, vocab: int = VOCAB, seed: int = 0):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=hidden, n_layer=layers, n_head=2, n_positions=128, vocab_size=vocab, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def tiny_llama(layers: int = 2, hidden: int = 16, vocab: int = VOCAB, seed: int = 0, scale: float = 0.3):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, vocab_size=vocab, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        initializer_range=scale,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_opt(layers: int = 2, hidden: int = 16, vocab: int = VOCAB, seed: int = 0):
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    config = OPTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, ffn_dim=32, vocab_size=vocab,
        word_embed_proj_dim=hidden, max_position_embeddings=128, dropout=0.0, init_std=0.3,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()
