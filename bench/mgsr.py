"""What the parts of MGSR cost: SCRG and the span loss a sample of the smollm2 pair, DAC-KL's head beside forward KL's.

Each part is timed with and without, by the pipeline's own training stage, in processes of their own that take turns
(`python -m bench.mgsr parts`).
`python -m bench.mgsr run NAME` prints what one training took, `python -m bench.mgsr corrections` the table of corrected
texts of docs/mgsr.md.
"""

from __future__ import annotations

import json
import sys

from bench.head import D_TEACHER, D, Inputs, N, V
from bench.measure import held_mb, in_own_process, interleaved, made, met, peak_mb, report
from bench.on_policy import BATCH, METHODS, NEW, START, seed, trained
from distill.config import load
from distill.losses import build, fused
from distill.losses.dac_kl import DacKL
from distill.pipeline.nodes import ensure
from distill.pipeline.plan import Plan
from distill.pipeline.stages.comparison import CORRECTIONS

ROUNDS = 2
SHOWN, CHARACTERS = 20, 160  # corrections of the table, and the most characters of a cell
# The student writes every batch, and cross-entropy is on the data
WRITING = ["method=mgsr", "loss=fkl", "train.precision=fp32"]
# The paper's timing is off-policy: here half of the batches are the student's, and half of those written now
OFF_POLICY = ["sampler=adaptive", *METHODS["distillm"][0][1:], f"train.seed={seed('distillm')}"]
RUNS: dict[str, list[str]] = {
    "student's text": [*WRITING, "loss.w_span=0", "sampler.scrg.corrections=0"],
    "SCRG": [*WRITING, "loss.w_span=0", "sampler.scrg.corrections=1"],
    "off-policy": [*WRITING, *OFF_POLICY, "loss.w_span=0", "sampler.scrg.corrections=0"],
    "SCRG, off-policy": [*WRITING, *OFF_POLICY, "loss.w_span=0", "sampler.scrg.corrections=1"],
    "spans of new text": [*WRITING, "sampler.scrg.corrections=0"],
    "data": ["method=kd", "train.precision=fp32"],
    "stored spans": ["method=kd", "loss.w_span=1", "train.precision=fp32"],
}
ASKED = {  # over which run, and the ratio
    "SCRG": ("student's text", 1.25),
    "SCRG, off-policy": ("off-policy", 1.25),
    "spans of new text": ("student's text", 1.15),
    "stored spans": ("data", 1.10),
}
WIDTHS = (64, 256)
KEPT = ["model=smollm2", "data.train.limit=500", "data.valid.limit=100", "train.micro_batch_size=8", "method=mgsr",
        "loss=fkl", "loss.w_span=0", "sampler.scrg.corrections=0"]  # fmt: skip


def parts() -> None:
    """Each run of `RUNS`, and its ratio over the one that lacks the part."""
    start = Plan(load(START))
    made(start, start.student)
    measured: dict[str, list[list[float]]] = {name: [] for name in RUNS}
    for _ in range(ROUNDS):
        for name in RUNS:
            measured[name].append(in_own_process("bench.mgsr", "run", name))
            print(name, *(f"{x:.3g}" for x in measured[name][-1]), flush=True)
    best = {name: min(values) for name, values in measured.items()}
    lines: list[dict[str, object]] = []
    for name, (seconds, _, tokens, peak) in best.items():
        without, asked = ASKED.get(name, (name, None))
        over = seconds / best[without][0]
        lines.append({
            "run": name, "seconds a sample": seconds, "over": without if asked else "", "ratio": over,
            "asked": "" if asked is None else str(asked), "met": "" if asked is None else met(over <= asked),
            "tokens a text": tokens, "peak MiB": peak,
        })  # fmt: skip
    report("mgsr", f"Parts of MGSR, smollm2, Dolly, batch {BATCH}, {NEW} new tokens, fp32", lines)


def head() -> None:
    """DAC-KL's head in two widths, and with the running mean of its limits, each beside forward KL's."""
    inputs = Inputs(N)
    forms = {f"width {width}": {"width": width} for width in WIDTHS} | {"limits=mean": {"limits": "mean"}}
    lines: list[dict[str, object]] = []
    for name, parameters in forms.items():
        divergence = build("dac_kl", **parameters)
        assert isinstance(divergence, DacKL)
        divergence.prepare(V, inputs.hidden.device)

        def dac_kl(divergence: DacKL = divergence) -> None:
            inputs.clear()
            divergence.zero_grad()
            fused(divergence, inputs.hidden, inputs.weight, inputs.theirs, inputs.their_weight).backward()

        def fkl() -> None:
            inputs.clear()
            fused(build("fkl"), inputs.hidden, inputs.weight, inputs.theirs, inputs.their_weight).backward()

        taken = interleaved({"dac_kl": dac_kl, "fkl": fkl}, 3)
        over = taken["dac_kl"] / taken["fkl"]
        own = sum(p.numel() for p in divergence.parameters())
        at_1k, at_8k = (in_own_process("bench.mgsr", "memory", name, str(n))[0] for n in (N, 8 * N))
        lines.append({
            "dac_kl": name, "parameters": own, "seconds": taken["dac_kl"], "over fkl": over, "asked": "2",
            "met": met(over <= 2), "peak MiB, N=1024": at_1k, "peak MiB, N=8192": at_8k,
        })  # fmt: skip
        print(*lines[-1].values(), flush=True)
    report("mgsr_head", f"DAC-KL's loss head, N={N}, V={V}, d={D} and {D_TEACHER}, fp32", lines)


def memory(name: str, n: int) -> None:
    inputs = Inputs(n)
    parameters = {"limits": "mean"} if name == "limits=mean" else {"width": int(name.split()[1])}
    divergence = build("dac_kl", **parameters)
    assert isinstance(divergence, DacKL)
    divergence.prepare(V, inputs.hidden.device)
    before = held_mb()
    fused(divergence, inputs.hidden, inputs.weight, inputs.theirs, inputs.their_weight).backward()
    print(peak_mb() - before)


def corrections() -> None:
    """Print corrections of Dolly's texts, evenly spaced, as a markdown table.

    Teacher and student are those of row "none" of the kept results/smollm2/mgsr/ablation. What is not in the store is
    made first, in half an hour and more.
    """
    plan = Plan(load([*KEPT, f"data.eval.dolly.sample={2 * SHOWN}"]))
    dataset = plan.sets["dolly"]
    node = plan.corrections(dataset)
    ensure(plan.store, [node])
    stored = (plan.store.folder(node) / CORRECTIONS).read_text().rstrip("\n")
    prompts = {example.id: example.instruction for example in dataset.examples}
    lines = [line for line in map(json.loads, stored.split("\n")) if line["place"] is not None]
    titles = "prompt", "before, to the error", "place", "student", "teacher", "KL", "the student goes on", "uncorrected"
    print("|", " | ".join(titles), "|")
    print("|" + "---|" * len(titles))
    for line in lines[:: max(1, len(lines) // SHOWN)][:SHOWN]:
        beginning = line["beginning"]
        rest = [line[name].removeprefix(beginning) for name in ("corrected", "written")]
        rest = [text.removeprefix(line[name]) for text, name in zip(rest, ("teacher", "student"), strict=True)]
        cells = [
            _cut(prompts[line["id"]]), _cut(beginning, at_end=False), str(line["place"]),
            *(f"`{line[name]!r}`" for name in ("student", "teacher")), f"{line['kl']:.1f}", *map(_cut, rest),
        ]  # fmt: skip
        print("|", " | ".join(cell.replace("|", "\\|") for cell in cells), "|")


def _cut(text: str, at_end: bool = True) -> str:
    """A text in one line, cut at its end or at its beginning."""
    line = " ".join(text.split())
    if len(line) <= CHARACTERS:
        return line
    return f"{line[:CHARACTERS]} ..." if at_end else f"... {line[-CHARACTERS:]}"


def main(words: list[str]) -> None:
    if words[:1] == ["memory"]:
        memory(words[1], int(words[2]))
    elif words == ["head"]:
        head()
    elif words == ["parts"]:
        parts()
    elif words == ["corrections"]:
        corrections()
    elif words[:1] == ["run"]:
        print(*trained(RUNS[words[1]]), peak_mb())
    else:
        parts()
        head()


if __name__ == "__main__":
    main(sys.argv[1:])
