"""ROUGE-L against the rouge-score package on one core, and over cores: the responses of five seeds to the sets at hand.

Answers stand in for each other: seed k's prediction for a prompt is the answer of the prompt k places on, so words
repeat as a model's do. Ours starts each turn with nothing cached.
"""

from __future__ import annotations

from rouge_score.rouge_scorer import RougeScorer

from bench.measure import interleaved, met, report
from distill.config import load
from distill.evaluation import rouge
from distill.pipeline.plan import Plan

ASKED = 8
MANY = 50_000  # texts: five seeds of Unnatural Instructions


def main() -> None:
    sets = Plan(load(["model=smollm2"])).sets
    references = [list(e.references) for d in sets.values() for e in d.examples]
    answers = [r[0] for r in references]
    pairs = [(answers[(i + k) % len(answers)], r) for k in range(1, 6) for i, r in enumerate(references)]
    predictions, wanted = [p for p, _ in pairs], [r for _, r in pairs]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def package() -> list[float]:
        return [max(100 * scorer.score(one, p)["rougeL"].fmeasure for one in several) for p, several in pairs]

    def ours() -> list[float]:
        rouge.forget()
        return rouge.rouge_l(predictions, wanted, 1)

    assert ours() == package()
    seconds = interleaved({"rouge-score": package, "ours": ours}, 2)
    ratio = seconds["rouge-score"] / seconds["ours"]
    rows: list[dict[str, object]] = [
        {
            "scorer": name,
            "seconds": taken,
            "texts/s": len(pairs) / taken,
            "its time over ours": taken / seconds["ours"],
            "asked": str(ASKED) if name != "ours" else "",
            "met": met(ratio >= ASKED) if name != "ours" else "",
        }
        for name, taken in seconds.items()
    ]
    report("rouge", f"ROUGE-L of {len(pairs)} texts, one core, the same values to the last bit", rows)

    over_cores(predictions, wanted)


def over_cores(predictions: list[str], wanted: list[list[str]]) -> None:
    """Many texts by one process, and by as many as `rouge_l` takes by itself."""
    times = -(-MANY // len(predictions))
    answers = [f"{text} {i}" for i, text in enumerate(predictions * times)]  # words repeat, whole texts hardly do
    references = wanted * times

    def by(processes: int | None) -> list[float]:
        rouge.forget()
        return rouge.rouge_l(answers, references, processes)

    assert by(None) == by(1)
    seconds = interleaved({"one process": lambda: by(1), "over cores": lambda: by(None)}, 2)
    rows: list[dict[str, object]] = [
        {
            "scorer": name,
            "seconds": taken,
            "texts/s": len(answers) / taken,
            "its time over one": taken / seconds["one process"],
        }
        for name, taken in seconds.items()
    ]
    report("rouge_cores", f"ROUGE-L of {len(answers)} texts", rows)


if __name__ == "__main__":
    main()
