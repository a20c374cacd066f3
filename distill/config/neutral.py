"""Neutral values: a key of the config that has its neutral value is left out of all hashes.

When a key is added to the schema, enter here the value that means the behaviour before the key existed. Then existing
artifacts and results keep their hashes. A neutral value is not a default: the schema's default may change later, and
then hashes and results change with it.

Never change or remove a value of this table: every hash that left it out would change.
"""

from __future__ import annotations

from typing import Any

from distill.config.section import Section

SPAN: dict[str, Any] = {"kind": "chunker", "chunker": None, "pipeline": None, "per": "tokens", "processes": 2}
NEUTRAL: dict[str, dict[str, Any]] = {
    "WeightsConfig": {
        "id": None, "revision": "main", "path": None,
        "layers": None, "hidden": None, "heads": None, "keep_layers": None,
    },
    "LoraConfig": {},
    "StageTrainConfig": {
        "schedule": None, "warmup_steps": None, "weight_decay": None, "betas": None, "micro_batch_size": None,
    },
    "TrainConfig": {"sft": None, "rollout": None},
    "EvalConfig": {"no_repeat_ngram_size": 0, "num_beams": 1, "bos": "added", "rouge_tokenizer": "english"},
    "LossConfig": {
        "w_lm": 1.0, "w_lm_kd": 0.0, "optimizer": {"lr": None, "weight_decay": None, "max_grad_norm": None},
        "ce_on": "text", "w_span": 0.0, "span": SPAN,
    },
    "SpanConfig": SPAN,
}  # fmt: skip
# Keys ("Class.field") whose schema default differs from the neutral value on purpose; the hash then has the default, or
# what the default means (`LossConfig.determining`).
DELIBERATE: frozenset[str] = frozenset({"LossConfig.w_lm"})


def determining(section: Section, include: set[str] | None = None, exclude: set[str] | None = None) -> dict[str, Any]:
    """A section's declared values that go into a hash: all but those at their neutral value.

    Args:
        section: the section.
        include: the fields that count; None is all.
        exclude: fields that do not count.
    """
    neutral = NEUTRAL[type(section).__name__]
    names = [n for n in type(section).model_fields if (include is None or n in include) and n not in (exclude or ())]
    values = section.model_dump(include=set(names))
    return {n: values[n] for n in names if n not in neutral or values[n] != neutral[n]}
