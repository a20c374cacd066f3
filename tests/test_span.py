"""MGSR's span loss: worked values, a plain loop, its gradient, and the chunks of the loss head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import softmax

from distill.losses import build, fused, names, span_relation
from distill.losses.fused import _chunks
from distill.losses.span import pair_weights

P = ((0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), (0.3, 0.3, 0.4))
Q = ((0.5, 0.3, 0.2), (0.6, 0.2, 0.2), (0.2, 0.5, 0.3), (0.25, 0.5, 0.25))
V = 29
SPANS = [(0, 3), (2, 9), (9, 10), (11, 18), (12, 14)]  # they overlap, and one has a single token


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(student, teacher, spans, per="tokens"):
    """Span by span, pair by pair."""
    q, p = ([softmax(row) for row in x.detach().numpy()] for x in (student, teacher))
    values = []
    for first, end in spans:
        pairs = [np.sqrt(((q[j] * q[j + 1] - p[j] * p[j + 1]) ** 2).sum()) for j in range(first, end - 1)]
        if per == "tokens":
            values.append(sum(pairs) / (end - first))
        elif pairs:
            values.append(np.mean(pairs))
    return float(np.mean(values)) if values else 0.0


@pytest.mark.parametrize(
    ("spans", "value"), [([(0, 2), (2, 4)], 0.023846), ([(0, 3)], 0.071802), ([(0, 4)], 0.064235), ([], 0.0)]
)
def test_worked_values(spans, value):
    p, q = (torch.tensor(x, dtype=torch.float64).log() for x in (P, Q))
    assert float(span_relation(q, p, spans)) == pytest.approx(value, abs=1e-6)
    assert float(span_relation(p, p, spans)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("per", ["tokens", "pairs"])
def test_it_is_a_plain_loop_and_its_gradient(per):
    student, teacher = draw(20, V, seed=1).requires_grad_(), draw(20, V, seed=2)
    assert span_relation(student, teacher, SPANS, per).item() == pytest.approx(plain(student, teacher, SPANS, per))
    assert torch.autograd.gradcheck(lambda s: span_relation(s, teacher, SPANS, per), student)


def test_equal_models_have_no_gradient():
    student = draw(20, V, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(span_relation(student, student.detach() + 3, SPANS), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("spans", [[(2, 2)], [(3, 2)], [(-1, 2)], [(0, 21)]])
def test_a_span_outside_of_the_text_is_refused(spans):
    with pytest.raises(ValueError, match="does not lie in a text of 20 tokens"):
        pair_weights(spans, 20)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("extra", [0, 3])
def test_chunks_change_nothing(chunk, extra):
    """Two texts, the span loss beside cross-entropy and a divergence; wider student heads are cut."""
    lengths, spans = (20, 9), (SPANS, [(0, 9)])
    pairs = torch.tensor([w / 2 for s, n in zip(spans, lengths, strict=True) for w in pair_weights(s, n)])
    hidden, weight = draw(29, 6, seed=3).requires_grad_(), draw(V + extra, 6, seed=4).requires_grad_()
    theirs, their_weight = draw(29, 5, seed=5), draw(V, 5, seed=6)
    targets = torch.arange(29) % V
    logits, teacher = hidden @ weight.T, theirs @ their_weight.T
    texts = torch.split(logits[:, :V], lengths), torch.split(teacher, lengths)
    span = sum(span_relation(s, t, x) for s, t, x in zip(*texts, spans, strict=True)) / 2
    expected = 0.3 * torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = expected + 0.7 * build("rkl")(logits[:, :V], teacher).sum() + span
    parts: dict[str, torch.Tensor] = {}
    found = fused(build("rkl"), hidden, weight, theirs, their_weight, chunk, targets, 0.3, 0.7, 1.0, parts, pairs=pairs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts["span_sum"], span.detach())
    for got, want in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(got, want)


def test_no_chunk_ends_inside_a_span():
    pairs = torch.tensor(pair_weights(SPANS, 20))
    for most in range(1, 25):
        chunks = _chunks(20, most, pairs)
        assert [i for c in chunks for i in range(c.start, c.stop)] == list(range(20))
        assert not any(pairs[c.stop - 1] for c in chunks)
        assert all(c.stop - c.start <= max(most, 9) for c in chunks)  # the longest run of overlapping spans
    assert _chunks(20, 6, None) == [slice(0, 5), slice(5, 10), slice(10, 15), slice(15, 20)]
    assert _chunks(0, 6, None) == _chunks(0, 6, torch.zeros(0)) == []


def test_pairs_need_a_teacher():
    with pytest.raises(ValueError, match="against a teacher"):
        fused(None, draw(4, 6), draw(V, 6), targets=torch.zeros(4).long(), w_ce=1.0, pairs=torch.zeros(4))


def test_every_divergence_goes_with_it():
    """Its own sums are what they are without pairs."""
    hidden, weight, theirs, their_weight = (draw(20, 6), draw(V, 6, seed=1), draw(20, 5, seed=2), draw(V, 5, seed=3))
    pairs, targets = torch.tensor(pair_weights(SPANS, 20)), torch.arange(20)
    for name in names():
        torch.manual_seed(0)
        divergence = build(name)
        with_pairs: dict[str, torch.Tensor] = {}
        without: dict[str, torch.Tensor] = {}
        for parts, given in ((with_pairs, pairs), (without, None)):
            fused(divergence, hidden, weight, theirs, their_weight, 7, targets, 0.0, 1.0, 1.0, parts, pairs=given)
        torch.testing.assert_close(with_pairs["kd_sum"], without["kd_sum"])
        assert "span_sum" not in without
