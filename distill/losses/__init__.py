"""Divergences between a teacher's and a student's next-token distributions, registered by name.

To add one, write a file in this folder with a registered `Divergence`, and `conf/loss/<name>.yaml`.
"""

from distill.losses.base import Divergence, Drawn, build, describe, names, switches
from distill.losses.fused import Head, fused

__all__ = ["Divergence", "Drawn", "Head", "build", "describe", "fused", "names", "switches"]
