"""Scores of texts and of models."""

from distill.evaluation.rouge import rouge_l

__all__ = ["rouge_l"]
