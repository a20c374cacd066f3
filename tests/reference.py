"""Divergences in float64, written in other forms than the package's, one token at a time."""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr


def softmax(logits):
    z = np.asarray(logits, dtype=np.float64)
    e = np.exp(z - z.max())
    return e / e.sum()


def fkl(p, q):
    return rel_entr(p, q).sum()


def rkl(p, q):
    return rel_entr(q, p).sum()


def akl(p, q, mu=0.5):
    """Head by accumulating sorted classes one by one until mu is reached."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    mass, head = 0.0, []
    for i in order:
        if mass >= mu:
            break
        head.append(i)
        mass += p[i]
    gap = np.abs(p - q)
    a = 0.5 if gap.sum() == 0 else gap[head].sum() / gap.sum()
    return a * fkl(p, q) + (1 - a) * rkl(p, q)


def ab(p, q, alpha=0.2, beta=0.7):
    """The defining formula, and on its three lines the limits as DESIGN states them."""
    s = alpha + beta
    if alpha == 0 and beta == 0:
        return 0.5 * (np.log(q / p) ** 2).sum()
    if beta == 0:
        return (p**alpha * np.log(p**alpha / q**alpha) - p**alpha + q**alpha).sum() / alpha**2
    if alpha == 0:
        return (q**beta * np.log(q**beta / p**beta) - q**beta + p**beta).sum() / beta**2
    if s == 0:
        return (np.log(q**alpha / p**alpha) + (p / q) ** alpha - 1).sum() / alpha**2
    return -(p**alpha * q**beta - alpha / s * p**s - beta / s * q**s).sum() / (alpha * beta)


REFERENCES = {"fkl": fkl, "rkl": rkl, "akl": akl, "ab": ab}
