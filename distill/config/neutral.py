"""Values at which a key of the config leaves all hashes as they were before the key was there.

An artifact's hash leaves out what stands here. So a new key keeps every kept artifact and result if its neutral value,
written here, is the behaviour of before. A schema's default is another thing: it may change, and then results do.

Never change a value of this table, and never take one out: every hash that leaves it out would change.
"""

from __future__ import annotations

from typing import Any

from distill.config.section import Section

NEUTRAL: dict[str, dict[str, Any]] = {
    "WeightsConfig": {
        "id": None, "revision": "main", "path": None,
        "layers": None, "hidden": None, "heads": None, "keep_layers": None,
    },
    "LoraConfig": {},
    "StageTrainConfig": {"schedule": None, "warmup_steps": None},
    "TrainConfig": {},
    "EvalConfig": {"no_repeat_ngram_size": 0, "num_beams": 1},
    "LossConfig": {"w_lm": 1.0, "optimizer": {"lr": None, "weight_decay": None, "max_grad_norm": None}},
}  # fmt: skip
# Defaults that differ from the neutral value on purpose, as "Class.field": the hash then names the default.
DELIBERATE: frozenset[str] = frozenset()


def determining(section: Section, only: set[str] | None = None, without: set[str] | None = None) -> dict[str, Any]:
    """A section's declared values for hashing, without those at their neutral value.

    Args:
        only: the fields that count; None is all.
        without: fields that do not.
    """
    neutral = NEUTRAL[type(section).__name__]
    names = [n for n in type(section).model_fields if (only is None or n in only) and n not in (without or ())]
    values = section.model_dump(include=set(names))
    return {n: values[n] for n in names if n not in neutral or values[n] != neutral[n]}
