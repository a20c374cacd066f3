"""MGSR's token loss: worked values, the derivatives by hand, the network, and what it logs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_gpt2
from reference import REFERENCES, softmax

from distill.data.encode import Encoded
from distill.evaluation.agreement import paired_logits
from distill.evaluation.density import BINS, densities
from distill.losses import build, fused
from distill.losses.dac_kl import RENORMALISE, clipped, dac_kl_given

P, Q = (torch.tensor(x, dtype=torch.float64).log() for x in ((0.4, 0.3, 0.2, 0.1), (0.25, 0.45, 0.1, 0.2)))
V = 23


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize(
    ("low", "high", "epsilon", "values"),
    [
        (0.15, 0.35, 1e-7, (0.204991, 0.333129, 0.109985, 0.129290)),
        (0.15, 0.35, 0.05, (0.181316, 0.280899, 0.112761, 0.133957)),
        (0.0, 1.0, 1e-7, (0.135677, 0.135677, 0.135677, 0.135677)),
    ],
)
def test_worked_values(low, high, epsilon, values):
    found = [dac_kl_given(Q, P, low, high, epsilon, renormalise=r) for r in RENORMALISE]
    found.append(dac_kl_given(Q, P, low, high, epsilon, ("high_density",), "both"))
    assert [float(x) for x in found] == pytest.approx(values, abs=1e-6)
    assert float(dac_kl_given(Q, P, low, high, epsilon, ("target",))) == pytest.approx(0.188001, abs=1e-6)


@pytest.mark.parametrize("renormalise", RENORMALISE)
@pytest.mark.parametrize("parts", [("high_density", "target"), ("high_density",), ("target",)])
@pytest.mark.parametrize(("domain", "epsilon"), [("value", 0.03), ("log", 0.7)])
def test_derivatives_by_finite_differences(renormalise, parts, domain, epsilon):
    """By the student's logits and by both limits, where the edges are wide enough to see."""
    low, high = (torch.tensor(x, dtype=torch.float64) for x in ((0.02, 0.05, 0.1), (0.2, 0.4, 0.3)))
    limits = [(x if domain == "value" else x.log()).requires_grad_() for x in (low, high)]

    def given(student, low, high):
        return dac_kl_given(student, draw(3, V, seed=2), low, high, epsilon, parts, renormalise, domain)

    assert torch.autograd.gradcheck(given, (draw(3, V, seed=1).requires_grad_(), *limits))


@pytest.mark.parametrize("renormalise", RENORMALISE)
def test_what_is_left_out_costs_the_network(renormalise):
    """By finite differences of the teacher's mass between the limits; value and slope are as without it."""
    student, teacher = (draw(3, V, seed=s).log_softmax(-1) for s in (1, 2))
    low, high = (torch.tensor(x, dtype=torch.float64) for x in ((0.02, 0.05, 0.1), (0.2, 0.4, 0.3)))
    how = (0.03, ("high_density", "target"), renormalise, "value")
    without, with_it = (clipped(student, teacher, low, high, *how, keep) for keep in (0.0, 2.0))
    torch.testing.assert_close(with_it.value, without.value)
    torch.testing.assert_close(with_it.slope, without.slope)
    step = 1e-6
    for by, moved in (("by_low", (1, 0)), ("by_high", (0, 1))):
        more, less = (
            clipped(student, teacher, low + sign * step * moved[0], high + sign * step * moved[1], *how).mass
            for sign in (1, -1)
        )
        torch.testing.assert_close(getattr(with_it, by) - getattr(without, by), -2 * (more - less) / (2 * step))


def test_nothing_is_kept():
    """Between limits without a class and without the top class: value and gradients are 0, and finite."""
    student = draw(2, V, seed=1).requires_grad_()
    low, high = (torch.full((2,), x, dtype=torch.float64, requires_grad=True) for x in (0.999, 0.9999))
    for renormalise in RENORMALISE:
        value = dac_kl_given(student, draw(2, V, seed=2), low, high, 1e-7, ("high_density",), renormalise)
        grads = torch.autograd.grad(value.sum(), (student, low, high))
        assert not value.any() and not any(g.any() for g in grads)


def network(limits, **parameters):
    """A divergence whose network has seen training: no parameter is 0."""
    torch.manual_seed(0)
    parameters["epsilon_start"] = parameters["epsilon"]
    divergence = build("dac_kl", limits=limits, width=5, sorted_classes=7, low=0.05, high=0.2, **parameters)
    divergence.prepare(V, torch.device("cpu"))
    divergence.double()
    for parameter in divergence.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return divergence


@pytest.mark.parametrize("limits", ["value", "quantile", "mean"])
@pytest.mark.parametrize("domain", ["value", "log"])
def test_chunks_give_what_autograd_gives(limits, domain):
    """Value, and gradients by hidden states, head and the network's parameters."""
    divergence = network(limits, epsilon=0.05, domain=domain, renormalise="both")
    hidden, weight = draw(11, 6, seed=3).requires_grad_(), draw(V, 6, seed=4).requires_grad_()
    theirs, their_weight = draw(11, 4, seed=5), draw(V, 4, seed=6)
    wanted = [hidden, weight, *divergence.parameters()]
    dense = 0.7 * divergence(hidden @ weight.T, theirs @ their_weight.T).sum()
    expected = torch.autograd.grad(dense, wanted)
    assert all(g.any() for g in expected)
    for chunk in (4, 11):
        ours = fused(divergence, hidden, weight, theirs, their_weight, chunk, w_kd=0.7)
        torch.testing.assert_close(ours, dense)
        for got, want in zip(torch.autograd.grad(ours, wanted), expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("limits", ["value", "quantile"])
def test_the_limits_by_numpy(limits):
    """What the network reads, its two numbers, and the order of the limits."""
    divergence = network(limits, epsilon=0.05)
    student, teacher = draw(6, V, seed=7), draw(6, V, seed=8)
    found = divergence(student, teacher).detach()
    weights = {name: p.detach().numpy() for name, p in divergence.named_parameters()}
    for row in range(6):
        p, q = softmax(teacher[row]), softmax(student[row])
        read = p @ weights["read.0"] + np.sort(p)[::-1][:7] @ weights["read.1"] + q @ weights["read.2"]
        hidden = torch.nn.functional.gelu(torch.tensor(read + weights["hidden_bias"])).numpy()
        high, low = 1 / (1 + np.exp(-(hidden @ weights["out"] + weights["bias"])))
        low = min(low, high)
        if limits == "quantile":
            low, high = np.quantile(p, low), np.quantile(p, high)
        assert float(found[row]) == pytest.approx(REFERENCES["dac_kl"](p, q, low=low, high=high, epsilon=0.05))


@pytest.mark.parametrize("limits", ["value", "quantile", "mean"])
@pytest.mark.parametrize("domain", ["value", "log"])
@pytest.mark.parametrize("numbers", [(-200.0, -300.0), (300.0, -200.0), (200.0, 300.0), (-300.0, 200.0)])
def test_limits_at_the_ends_of_single_precision(limits, domain, numbers):
    """Where a limit is 0 or 1 in single precision, value and gradients are finite."""
    divergence = network(limits, epsilon=0.05, domain=domain).float()
    divergence.bias.data[:] = torch.tensor(numbers)
    if limits == "mean":
        divergence.running[:] = torch.tensor(numbers).sigmoid()
    student, teacher = (draw(6, V, seed=s, scale=20).float() for s in (7, 8))
    value = divergence(student.requires_grad_(), teacher)
    grads = torch.autograd.grad(value.sum(), [student, *divergence.parameters()])
    assert value.isfinite().all() and all(g.isfinite().all() for g in grads)


def test_the_width_shrinks_over_training():
    divergence = build("dac_kl", epsilon=1e-6, epsilon_start=1e-2)
    wide, narrow = build("dac_kl", epsilon=1e-2, epsilon_start=1e-2), build("dac_kl", epsilon=1e-4, epsilon_start=1e-4)
    student, teacher = draw(6, V, seed=7), draw(6, V, seed=8)
    torch.testing.assert_close(divergence(student, teacher), wide(student, teacher))
    divergence.at(0.5)
    torch.testing.assert_close(divergence(student, teacher), narrow(student, teacher))


def test_what_it_logs():
    """Means over the tokens since the last call."""
    divergence = network("mean", epsilon=0.05)
    student, teacher = (draw(6, V, seed=s).log_softmax(-1) for s in (7, 8))
    high, low = divergence.running
    found = clipped(student, teacher, low.expand(6), high.expand(6), 0.05)
    for part in (slice(0, 2), slice(2, 6)):
        divergence.value_and_slope(student[part], teacher[part], None)
    seen = divergence.seen()
    assert seen["low"] == pytest.approx(float(low)) and seen["high"] == pytest.approx(float(high))
    assert seen["kept_classes"] == pytest.approx(float(found.kept.mean()))
    assert seen["kept_mass"] == pytest.approx(float(found.mass.mean()))
    assert seen["limit_gradient"] == pytest.approx(float(torch.stack((found.by_low, found.by_high)).norm(dim=0).mean()))
    assert divergence.seen() == {}


def test_the_running_mean_of_the_limits():
    """A step moves it by a hundredth to the mean over the step's tokens, whatever the chunks; validation does not."""
    divergence, alone = network("mean", epsilon=0.05), network("value", epsilon=0.05)
    student, teacher = (draw(6, V, seed=s).log_softmax(-1) for s in (7, 8))
    for part in (slice(0, 2), slice(2, 6)):
        divergence.value_and_slope(student[part], teacher[part], None)
    divergence.eval()
    divergence.value_and_slope(teacher, student, None)
    divergence.train().at(0.5)
    alone.value_and_slope(student, teacher, None)
    predicted = alone._numbers(alone._read(alone._inputs(student, teacher))).sigmoid().detach()
    start = torch.tensor([0.2, 0.05], dtype=torch.float64)
    torch.testing.assert_close(divergence.running, start + 0.01 * (predicted.mean(0) - start))
    divergence.at(0.6)  # a step without a token
    torch.testing.assert_close(divergence.running, start + 0.01 * (predicted.mean(0) - start))
    assert "running" in divergence.state()


def test_printed_epsilon_in_single_precision():
    """Where no class is at the lower limit the value is that of float64; the upper limit has no gradient."""
    student, teacher = draw(20, 100, seed=1, scale=3.0), draw(20, 100, seed=2, scale=3.0)
    values = []
    for dtype in (torch.float32, torch.float64):
        low, high = (torch.full((20,), x, dtype=dtype, requires_grad=True) for x in (1e-4, 0.5))
        value = dac_kl_given(student.to(dtype), teacher.to(dtype), low, high)
        grads = torch.autograd.grad(value.sum(), (low, high))
        far = ((teacher.softmax(-1) - 1e-4).abs() > 3e-6).all(-1)
        assert far.sum() > 3 and grads[0].isfinite().all() and not grads[1].any()
        values.append(value.detach().double())
    torch.testing.assert_close(values[0][far], values[1][far], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0 must be positive"),
        ({"epsilon": 0.1, "epsilon_start": 0.01}, "epsilon_start=0.01 must be 0 .epsilon throughout. or at least"),
        ({"parts": ("low_density",)}, "parts=.'low_density'. must be some of high_density, target"),
        ({"renormalise": "student"}, "renormalise=student must be one of none, teacher, both"),
        ({"limits": "top_p"}, "limits=top_p must be one of value, quantile, mean"),
        ({"domain": "logit"}, "domain=logit must be one of value, log"),
        ({"low": 0.6, "high": 0.5}, "low at most high"),
        ({"width": 0}, "must be 1 or more"),
        ({"keep": -1.0}, "keep=-1.0 must be 0"),
    ],
)
def test_bad_parameters(words, message):
    with pytest.raises(ValueError, match=message):
        build("dac_kl", **words)


def test_densities_count_every_class_and_its_weight():
    student, teacher = tiny_gpt2().eval(), tiny_gpt2(seed=9).eval()
    divergence = build("dac_kl", low=0.02, high=0.2, epsilon=0.01)
    divergence.prepare(VOCAB, torch.device("cpu"))
    torch.nn.init.normal_(divergence.out)  # limits of their own for each token
    rows = [Encoded(f"r{n}", [1, 2, 3], list(range(4, 6 + n))) for n in range(5)]
    found = densities(divergence.eval(), student, teacher, rows, 0, None)
    pairs = [(q, p) for _, q, p in paired_logits(student, teacher, rows, 0)]
    q, p = divergence.log_probs(*(torch.cat(x) for x in zip(*pairs, strict=True)))
    low, high = divergence._limits(divergence._numbers(divergence._read(divergence._inputs(q, p))), p)
    kept = clipped(q, p, low, high, 0.01).kept
    assert found["positions"] == [len(q)] == [sum(len(r.response) for r in rows)]
    assert sum(found["all"]) == pytest.approx(VOCAB) and sum(found["kept"]) == pytest.approx(float(kept.mean()))
    edges = np.arange(1, BINS + 1) * 0.25 - 12
    below = [(p / np.log(10) < edge).double().sum(-1).mean().item() for edge in edges]
    np.testing.assert_allclose(np.cumsum(found["all"])[:-1], below[:-1], atol=1e-6)
