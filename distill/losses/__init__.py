"""Divergences between a teacher's and a student's next-token distributions, registered by name.

To add one: a file in this folder with a registered `Divergence`, and `conf/loss/<name>.yaml`.
"""

from distill.losses.base import Divergence, build, describe, names

__all__ = ["Divergence", "build", "describe", "names"]
