"""MGSR's span loss: worked values, a plain loop, its gradient, and the chunks of the loss head."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import tiny_gpt2
from reference import softmax

from distill.config.objective import SpanConfig
from distill.data.encode import FILLER, IGNORE, STUDENT_TEXT, Collator, Encoded
from distill.losses import build, fused, names, span_relation
from distill.losses.fused import _chunks
from distill.losses.span import pair_weights
from distill.teacher.signal import LiveTeacher
from distill.training.distiller import Distiller
from distill.training.objective import SpanRelation, objective_terms
from distill.training.spans import RowSpans

P = ((0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.1, 0.8, 0.1), (0.3, 0.3, 0.4))
Q = ((0.5, 0.3, 0.2), (0.6, 0.2, 0.2), (0.2, 0.5, 0.3), (0.25, 0.5, 0.25))
V = 29
fused_module = sys.modules["distill.losses.fused"]  # the package has a function of the same name
PHRASES = [(0, 3), (2, 9), (9, 10), (11, 18), (12, 14)]  # they overlap, and one has a single token


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
    assert span_relation(student, teacher, PHRASES, per).item() == pytest.approx(plain(student, teacher, PHRASES, per))
    assert torch.autograd.gradcheck(lambda s: span_relation(s, teacher, PHRASES, per), student)


def test_equal_models_have_no_gradient():
    student = draw(20, V, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(span_relation(student, student.detach() + 3, PHRASES), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("spans", [[(2, 2)], [(3, 2)], [(-1, 2)], [(0, 21)]])
def test_a_span_outside_of_the_text_is_refused(spans):
    with pytest.raises(ValueError, match="does not lie in a text of 20 tokens"):
        pair_weights(spans, 20)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("extra", [0, 3])
def test_chunks_change_nothing(chunk, extra):
    """Two texts, the span loss beside cross-entropy and a divergence; wider student heads are cut."""
    lengths, spans = (20, 9), (PHRASES, [(0, 9)])
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


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_blocks_change_nothing(monkeypatch, rows):
    """As with a large vocabulary: passes over a chunk take a few rows at a time, and pairs reach over the border."""
    hidden, weight = draw(20, 6), draw(V, 6, seed=1)
    theirs, their_weight = draw(20, 5, seed=2), draw(V, 5, seed=3)
    pairs, weight = torch.tensor(pair_weights(PHRASES, 20), dtype=torch.float64), weight.requires_grad_()

    def run():
        parts: dict[str, torch.Tensor] = {}
        total = fused(build("rkl"), hidden, weight, theirs, their_weight, 11, parts=parts, pairs=pairs)
        return total.detach(), parts["span_sum"], *torch.autograd.grad(total, weight)

    whole = run()
    monkeypatch.setattr(fused_module, "CACHE_BYTES", 4 * V * rows)
    for again, before in zip(run(), whole, strict=True):
        torch.testing.assert_close(again, before)


def test_no_chunk_ends_inside_a_span():
    pairs = torch.tensor(pair_weights(PHRASES, 20))
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
    pairs, targets = torch.tensor(pair_weights(PHRASES, 20)), torch.arange(20)
    for name in names():
        torch.manual_seed(0)
        divergence = build(name)
        with_pairs: dict[str, torch.Tensor] = {}
        without: dict[str, torch.Tensor] = {}
        for parts, given in ((with_pairs, pairs), (without, None)):
            fused(divergence, hidden, weight, theirs, their_weight, 7, targets, 0.0, 1.0, 1.0, parts, pairs=given)
        torch.testing.assert_close(with_pairs["kd_sum"], without["kd_sum"])
        assert "span_sum" not in without


SPANS = {"a": [(0, 2), (1, 5)], "b": [(0, 3)], "c": [], "d": [(2, 6), (4, 5)]}
ROWS = [
    Encoded("a", [1, 2], [3, 4, 5, 6, 0]),
    Encoded("b", [1, 2, 3], [7, 8, 0], {STUDENT_TEXT: True}),
    Encoded("c", [4], [9, 0]),
    Encoded("d", [5, 6], [9, 3, 3, 2, 8, 0]),
    FILLER,
]


def objective(batches, w_span=0.5, per="tokens", data=(), **more):
    """Loss, gradient of the student's head, and sums over the micro-batches of one global batch.

    Args:
        data: rows of the data set beside the first micro-batch, for the cross-entropy.
    """
    student, spans = tiny_gpt2(), RowSpans(SpanConfig(per=per), "micro", SPANS, None)
    terms = objective_terms(build("rkl"), 0.2, 0.7, span=SpanRelation(w_span, spans, per), ce_on_data=bool(data))
    model = Distiller(student, LiveTeacher(tiny_gpt2(hidden=24, seed=9)), terms, **more).eval()
    collated = [Collator(0)(rows) for rows in batches]
    if data:
        collated[0]["data_rows"] = Collator(0)(data)
    items = sum(int((b["labels"] != IGNORE).sum()) for b in collated)
    counts = model.objective.counts(collated)
    results = [model(**b, num_items_in_batch=items, counts=counts) for b in collated]
    loss = sum(r["loss"] for r in results)
    loss.backward()
    names = [f"{term}_{what}" for term in ("span", "kd", "ce") for what in ("sum", "count")]
    sums = {k: sum(float(r.get(k, 0)) for r in results) for k in names}
    return loss.detach(), student.lm_head.weight.grad, sums


@pytest.mark.parametrize("per", ["tokens", "pairs"])
def test_the_objective_has_the_mean_over_texts(per):
    """However the global batch is split, and where the student wrote some of its texts; one has no span, and adds 0."""
    student, teacher = tiny_gpt2(), tiny_gpt2(hidden=24, seed=9)
    values = []
    for row in ROWS[:-1]:
        ids = torch.tensor([[*row.prompt, *row.response]])
        at = slice(len(row.prompt) - 1, -1)
        logits = [model(ids).logits[0, at] for model in (student, teacher)]
        values.append(span_relation(*logits, SPANS[row.id], per))
    span = torch.stack(values).mean()
    whole, gradient, sums = objective([ROWS], per=per)
    without, plain_gradient, _ = objective([ROWS], 0.0, per)
    torch.testing.assert_close(whole - without, 0.5 * span.detach(), rtol=1e-4, atol=1e-7)
    assert sums["span_sum"] / sums["span_count"] == pytest.approx(span.item(), rel=1e-5) and sums["span_count"] == 4
    (wanted,) = torch.autograd.grad(0.5 * span, student.lm_head.weight)
    torch.testing.assert_close(gradient - plain_gradient, wanted, rtol=1e-3, atol=1e-7)
    for split in ([ROWS[:1], ROWS[1:]], [ROWS[:3], ROWS[3:]], [[row] for row in ROWS]):
        again, other, parts = objective(split, per=per)
        torch.testing.assert_close(again, whole)
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-7)
        assert [parts[k] for k in parts if k[:2] != "ce"] == pytest.approx(
            [sums[k] for k in sums if k[:2] != "ce"], rel=1e-4
        )


def test_texts_without_spans_have_no_span_loss():
    loss, _, sums = objective([[ROWS[2]]])
    assert loss == objective([[ROWS[2]]], 0.0)[0] and sums["span_sum"] == 0 and sums["span_count"] == 1


def test_cross_entropy_on_the_data_where_the_student_writes():
    """Its mean is over the data's tokens, those of the other terms over the student's."""
    written = [Encoded(f"{row.id}@s", row.prompt, row.response, {STUDENT_TEXT: True}) for row in ROWS[:2]]
    given = [Encoded("x", [1, 2], [8, 7, 6, 5, 4, 3, 0]), Encoded("y", [1, 2, 3], [2, 2, 0])]
    SPANS.update({f"{row.id}@s": SPANS[row.id] for row in ROWS[:2]})
    student = tiny_gpt2()
    losses = []
    for row in given:
        ids = torch.tensor([[*row.prompt, *row.response]])
        logits = student(ids).logits[0, len(row.prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.response), reduction="sum"))
    ce = sum(losses) / 10
    whole, gradient, sums = objective([written], data=given)
    without, plain_gradient, _ = objective([written])  # the student's own text has no cross-entropy
    torch.testing.assert_close(whole - without, 0.2 * ce.detach(), rtol=1e-4, atol=1e-7)
    (wanted,) = torch.autograd.grad(0.2 * ce, student.lm_head.weight)
    torch.testing.assert_close(gradient - plain_gradient, wanted, rtol=1e-3, atol=1e-7)
    assert sums["ce_sum"] == pytest.approx(sum(losses).item(), rel=1e-5)
    assert sums["ce_count"] == 10 and sums["kd_count"] == 8
    again, other, _ = objective([[written[0]], [written[1]]], data=given)
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-7)
