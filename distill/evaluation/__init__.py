"""Generation, scores, and the evaluation stage."""

from distill.evaluation.rouge import rouge_l

__all__ = ["rouge_l"]
