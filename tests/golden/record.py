"""What a refactoring must not change: keys of artifacts, and the first steps of every method.

`python -m tests.golden.record` writes `keys.json` and `curves.json` anew; a change of either needs a reason in the
change's description.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from distill.base.provenance import processor_kind
from distill.config import load
from distill.pipeline.nodes import ensure
from distill.pipeline.plan import Plan
from distill.pipeline.store import Spec

FOLDER = Path(__file__).parent
STEPS = 5

KEYS = {
    "micro": ["model=micro", "loss=fkl"],
    "micro ab": ["model=micro", "loss=ab", "train.seed=2"],
    "micro seqkd": ["model=micro", "method=seqkd"],
    "micro gkd reference": ["model=micro", "method=gkd", "preset=reference"],
    "micro minillm": ["model=micro", "method=minillm"],
    "micro distillm": ["model=micro", "method=distillm", "sampler.threshold=0.2"],
    "micro mgsr": ["model=micro", "method=mgsr"],
    "micro sft live": ["model=micro", "loss=sft", "train.teacher_signal=live"],
    "micro greedy": ["model=micro", "loss=akl", "eval.do_sample=false", "eval.no_repeat_ngram_size=6"],
    "gpt2 smoke": ["model=gpt2", "debug=smoke", "loss=alphanet", "train.precision=bf16"],
    "opt smoke": ["model=opt", "debug=smoke", "loss=skl", "train.teacher_signal=live"],
    "openllama2 smoke": ["model=openllama2", "debug=smoke", "loss=jsd", "train.student.schedule=constant"],
    "llama2 smoke": ["model=llama2", "debug=smoke", "method=imitkd", "preset=reference"],
    "smollm2 smoke": ["model=smollm2", "debug=smoke", "loss=skd", "eval.bertscore.encoder=null"],
    "tinyllama smoke": ["model=tinyllama", "debug=smoke", "loss=weighted", "loss.forward=0.25", "loss.reverse=0.75"],
}

MODELS = ("gpt2", "llama2")
METHODS = ["sft", "kd", "seqkd", "imitkd", "gkd", "minillm", "distillm", "abkd", "akl", "mgsr"]
CURVES = {
    **{
        f"{model} {method}": [f"model={model}", f"method={method}"]
        for model in ("gpt2", "llama2")
        for method in METHODS
    },
    "gpt2 gkd reference": ["model=gpt2", "method=gkd", "preset=reference"],
    "gpt2 minillm reference": ["model=gpt2", "method=minillm", "preset=reference"],
    "gpt2 distillm busy": ["model=gpt2", "method=distillm", "sampler.threshold=0.9", "sampler.capacity=8"],
    "opt alphanet per batch": ["model=opt", "loss=alphanet", "loss.per=batch"],
    "smollm2 akl bf16": ["model=smollm2", "loss=akl", "train.precision=bf16"],
}


def keys(words: list[str]) -> dict[str, str]:
    """The keys of all that a config's student is made from and of its first evaluation."""
    plan = Plan(load(words))
    first = next(iter(plan.sets.values()))
    found: dict[str, Any] = {
        "base teacher": plan.base("teacher"),
        "base student": plan.base("student"),
        "teacher": plan.teacher,
        "start": plan.start,
        "student": plan.student,
        "evaluation": plan.evaluation("student", first, 10),
    }
    if plan.config.loss.w_kd:
        found |= {"signal": plan.signal, "agreement": plan.agreement(first), "exposure": plan.exposure(first)}
    if plan.config.sampler.kind.asks_teacher:
        found["answers"] = plan.answers
    return {name: spec.name if isinstance(spec, Spec) else spec.key for name, spec in found.items()}


def curve(words: list[str], folder: Path) -> dict[str, list[float]]:
    """Loss and gradient norm of the first steps of a config's student, in smoke size over two epochs."""
    config = load(["debug=smoke", *words, f"paths.store={folder}/store", f"paths.results={folder}/results"])
    longer = {config.stage: config.schedule.model_copy(update={"epochs": 2})}
    plan = Plan(config.model_copy(update={"train": config.train.model_copy(update=longer)}))
    ensure(plan.store, [plan.student])
    steps = pd.read_csv(plan.store.folder(plan.student) / "curve.csv").dropna(subset="loss").head(STEPS)
    return {name: steps[name].tolist() for name in ("loss", "grad_norm")}


def environment() -> dict[str, str]:
    """What the bits of a curve depend on besides the code."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": processor_kind(),
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Write the named files anew, both without a name."""
    names = sys.argv[1:] or ["keys", "curves"]
    if "keys" in names:
        found = {name: keys(words) for name, words in KEYS.items()}
        (FOLDER / "keys.json").write_text(json.dumps(found, indent=1) + "\n")
    if "curves" in names:
        with tempfile.TemporaryDirectory() as folder:
            steps = {name: curve(words, Path(folder) / name.replace(" ", "-")) for name, words in CURVES.items()}
        (FOLDER / "curves.json").write_text(
            json.dumps({"environment": environment(), "curves": steps}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
