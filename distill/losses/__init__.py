"""Divergences between a teacher's and a student's next-token distributions, registered by name.

To add one, write a file in this folder with a registered `Divergence`, and `conf/loss/<name>.yaml`.
"""

from distill.losses.base import Divergence, Drawn, WholeBatch, build, describe, names, switches
from distill.losses.dac_kl import dac_kl_given
from distill.losses.fused import fused
from distill.losses.logits import Head
from distill.losses.span import span_relation

__all__ = [
    "Divergence", "Drawn", "Head", "WholeBatch", "build", "dac_kl_given", "describe", "fused", "names", "span_relation",
    "switches",
]  # fmt: skip
