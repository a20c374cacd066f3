"""Divergences in float64, written in other forms than the package's, one token at a time."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, rel_entr
from scipy.stats import entropy


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


def weighted(p, q, forward=0.5, reverse=0.5):
    return forward * (forward and fkl(p, q)) + reverse * (reverse and rkl(p, q))


def skl(p, q, mix=0.1):
    m = mix * p + (1 - mix) * q
    return entropy(p, m)


def srkl(p, q, mix=0.1):
    return entropy(q, (1 - mix) * p + mix * q)


def jsd(p, q, teacher_weight=0.5):
    """As a difference of entropies."""
    w = teacher_weight
    return entropy(w * p + (1 - w) * q) - w * entropy(p) - (1 - w) * entropy(q)


def tvd(p, q):
    """One minus the overlap."""
    return 1 - np.minimum(p, q).sum()


def bdkd(p, q, weight=3.0):
    larger = entropy(p) - entropy(q)
    return fkl(p, q) * (weight if larger > 0 else 1) + rkl(p, q) * (weight if larger < 0 else 1)


def akl_r(p, q, mu=0.5):
    """The two weights sum to 1, so akl and akl_r sum to both KL."""
    return fkl(p, q) + rkl(p, q) - akl(p, q, mu)


def alphanet(p, q, alphas=(0.2, 0.8)):
    """Alpha-divergences from the Chernoff coefficient."""
    return max((1 - (p**a * q ** (1 - a)).sum()) / (a * (1 - a)) for a in alphas)


def clipped(p, q, kept):
    inside = p * kept / (p * kept).sum()
    return entropy(inside, q)


def fixed_clip(p, q, threshold=0.001):
    return clipped(p, q, (p >= threshold) | (p == p.max()))


def top_p_clip(p, q, mass=0.95):
    order = np.argsort(-p, kind="stable")
    kept = np.zeros(len(p), dtype=bool)
    kept[order[: np.searchsorted(np.cumsum(p[order]), mass * (1 - 1e-12)) + 1]] = True
    return clipped(p, q, kept)


def dkd(p, q, target, alpha=1.0, beta=8.0):
    others = np.arange(len(p)) != target
    binary = entropy([p[target], p[others].sum()], [q[target], q[others].sum()])
    return alpha * binary + beta * entropy(p[others], q[others])  # scipy normalises both


def skd(p, q):
    """Before training: the simplifier adds nothing."""
    return fkl(p, q)


def dac_kl(p, q, renormalise="none", parts=("high_density", "target"), low=1e-4, high=0.5, epsilon=1e-7, **_):
    """Before training: the limits are those of the start, the same for every token."""
    w = np.array([expit((x - low) / epsilon) * expit((high - x) / epsilon) for x in p]) * ("high_density" in parts)
    if "target" in parts:
        w[p.argmax()] = 1
    a, b = w * p, w * q
    if renormalise == "none":
        return rel_entr(a, b).sum()
    return rel_entr(a / a.sum(), b / b.sum() if renormalise == "both" else q).sum()


def selective(p, q, hard, **_):
    return fkl(p, q) if hard else 0.0


def filtration(p, q, target):
    return fkl(p, q) * (p[target] >= q[target])


def slim(p, q, target, share=0.05):
    kept = np.zeros(len(p), dtype=bool)
    kept[np.argsort(-p)[: max(1, int(share * len(p)))]] = True
    a = p[target] / (p[target] + q[target])
    return a * clipped(p, q, kept) - (1 - a) * np.log(q[target])


def todi(p, q):
    a = p / (p + q)
    return a @ rel_entr(p, q) + (1 - a) @ rel_entr(q, p)


def csd(p, q):
    """All pairs of classes, one by one."""
    ratio, classes = np.log(q / p), range(len(p))
    return sum(q[i] * q[j] * (ratio[i] - ratio[j]) ** 2 for i in classes for j in classes) / 4


def hellinger(p, q):
    return np.sqrt(max(0.0, 1 - np.sqrt(p * q).sum()))


def adakd(p, q, median, scale=0.5):
    """As long as all tokens are chosen."""
    t = (1 / np.exp(scale * np.tanh(np.log(hellinger(p, q) / median)))) if median else 1.0
    return t**2 * rkl(p ** (1 / t) / (p ** (1 / t)).sum(), q ** (1 / t) / (q ** (1 / t)).sum())


def minillm(p, q):
    """Where nothing is known of a token but its id."""
    return entropy(q, p)


REFERENCES = {
    f.__name__: f
    for f in (
        fkl,
        rkl,
        weighted,
        skl,
        srkl,
        jsd,
        tvd,
        bdkd,
        akl,
        akl_r,
        ab,
        alphanet,
        fixed_clip,
        top_p_clip,
        dkd,
        skd,
        dac_kl,
        selective,
        filtration,
        slim,
        todi,
        csd,
        adakd,
        minillm,
    )
}
