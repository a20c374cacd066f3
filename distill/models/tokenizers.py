"""Small tokenizers trained in the convention of a model family, and the check that two models share a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distill.base.console import say_once
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

    Args:
        convention: `gpt2` (byte level, no BOS, pad is EOS), `opt` (byte level, BOS `</s>` before a prompt, pad id 1) or
            `llama` (sentencepiece style: `▁` stands for a space and is also put before the text; a line feed is a token
            of its own; BOS before a prompt; no pad token).
        texts: the training texts.
        vocab_size: maximum number of tokens.
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
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never", split=True)]
        )
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


def check_tokenizer(name: str, tokenizer: Any, classes: int) -> None:
    """Refuse a tokenizer that cannot read text, or that has ids for which the model has no embedding.

    Args:
        name: the checkpoint, for the message.
        tokenizer: as it was loaded.
        classes: number of the model's input embeddings.

    Raises:
        UserError: with all that is wrong.
    """
    problems = []
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= classes:
        problems.append(
            f"{name}: its tokenizer has ids up to {largest} and its model {classes} embeddings; take the tokenizer that"
            " the model was saved with, or resize the model (resize_token_embeddings)"
        )
    if tokenizer.eos_token_id is None:
        problems.append(
            f"{name}: its tokenizer has no eos_token, which ends a response; set it in tokenizer_config.json"
        )
    text = PROBES[0]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    written = tokenizer.decode(ids, skip_special_tokens=True)
    if not any(word in written for word in text.split()):
        problems.append(
            f"{name}: its tokenizer makes {written!r} of {text!r}; files of the tokenizer are missing or damaged"
            " (tokenizer.json, or vocab.json with merges.txt, or tokenizer.model); copy them beside the weights"
        )
    if problems:
        raise UserError(problems)


def common_vocabulary(*tokenizers: Any) -> int:
    """The number of ids that may be written for all these tokenizers: one more than the largest that all have."""
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
    shared = set(vocabularies[0]).intersection(*vocabularies)
    return 1 + max(vocabularies[0][token] for token in shared)


def check_same_tokenizer(teacher: Any, student: Any) -> list[str]:
    """Refuse a pair whose tokenizers differ: a divergence per token would compare probabilities of different tokens.

    Tokens that one of them has in addition, behind the ids of the other, are allowed and said.

    Returns:
        These tokens.

    Raises:
        UserError: a token has two ids, an id two tokens, or the EOS ids or the encodings of probe texts differ.
    """
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    shared = student_vocab.keys() & teacher_vocab.keys()
    two_ids = [t for t in shared if student_vocab[t] != teacher_vocab[t]]
    added = sorted(student_vocab.keys() ^ teacher_vocab.keys())
    largest = max((student_vocab[t] for t in shared), default=-1)
    in_between = [t for t in added if (student_vocab | teacher_vocab)[t] <= largest]
    encodings = [p for p in PROBES if teacher(p).input_ids != student(p).input_ids]
    if two_ids or in_between or encodings or teacher.eos_token_id != student.eos_token_id:
        raise UserError(
            f"teacher and student have different tokenizers ({len(teacher_vocab)} and {len(student_vocab)} tokens,"
            f" {len(added)} in one only, {len(two_ids)} under another id, {len(encodings)} of {len(PROBES)} probe texts"
            f" encoded differently, EOS ids {teacher.eos_token_id} and {student.eos_token_id}); both must share one"
            " vocabulary: choose a pair of one family"
        )
    if added:
        listed = ", ".join(added[:3]) + (", ..." if len(added) > 3 else "")
        say_once(
            f"teacher and student share {len(shared)} tokens; {len(added)} that only one of them has are not written"
            f" ({listed})"
        )
    return added


def pad_id(tokenizer: Any) -> int:
    """The token id of padding: the tokenizer's pad token, or EOS if it has none (masks never compare ids)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
