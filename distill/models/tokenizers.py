"""Small tokenizers trained on a data set in a family's convention, and the check that two models share one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distill.base.errors import UserError

PROBES = (
    "The quick brown fox.",
    "  two  spaces\n\nnew lines",
    "3.14 + 2,718 = ?",
    "naïve café — 東京 🙂",
    "### Response:\n",
)


def train_tokenizer(convention: str, texts: Iterable[str], vocab_size: int) -> Any:
    """A BPE tokenizer of at most `vocab_size` tokens, trained on `texts`.

    Conventions: `gpt2` (byte level, no BOS, pad is EOS), `opt` (byte level, BOS `</s>` before a prompt, pad id 1) and
    `llama` (sentencepiece style: spaces as a mark before a word, one put before a text that has none; BOS before a
    prompt; no pad token).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = {
        "gpt2": ["<|endoftext|>"],
        "opt": ["<s>", "<pad>", "</s>", "<unk>"],
        "llama": ["<unk>", "<s>", "</s>"],
    }[convention]
    roles = {
        "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "opt": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    }[convention]
    if convention == "llama":
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet, byte_tokens = [], [f"<0x{i:02X}>" for i in range(256)]
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet, byte_tokens = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*specials, *byte_tokens],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    if convention != "gpt2":
        bos = roles["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **roles)


def check_same_tokenizer(teacher: Any, student: Any) -> None:
    """Refuse a pair whose tokenizers differ: token-level divergences would compare unlike things.

    Raises:
        UserError: says what differs. Equal size is not enough; probe texts are encoded by both.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = [t for t in ours.keys() & theirs.keys() if ours[t] != theirs[t]]
    only = len(ours.keys() ^ theirs.keys())
    encodings = [p for p in PROBES if teacher(p).input_ids != student(p).input_ids]
    if differing or encodings or only or teacher.eos_token_id != student.eos_token_id:
        raise UserError(
            f"teacher and student have different tokenizers ({len(theirs)} and {len(ours)} tokens, {only} in one only,"
            f" {len(differing)} under another id, {len(encodings)} of {len(PROBES)} probe texts encoded differently);"
            " distillation here is over one vocabulary: choose a pair of one family"
        )


def pad_id(tokenizer: Any) -> int:
    """The id that fills rows: the tokenizer's pad token or, where it has none, EOS (masks go by position)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
