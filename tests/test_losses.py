"""Every registered divergence: worked values, an independent reference, properties, limits, gradients."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import REFERENCES, softmax

from distill.losses import base, build, names
from distill.losses.akl import head_gap
from distill.losses.kl import forward_kl

WORKED = [  # name, parameters, value at the first and the second pair of DESIGN 6
    ("fkl", {}, 0.085123, 0.135677),
    ("rkl", {}, 0.092033, 0.134273),
    ("akl", {"mu": 0.5}, 0.088578, 0.135115),
    ("ab", {"alpha": 0.2, "beta": 0.7}, 0.102591, 0.155982),
    ("ab", {"alpha": 0.1, "beta": 0.8}, 0.103613, 0.156088),
    ("ab", {"alpha": 0.5, "beta": 0.0}, 0.169748, 0.294502),
    ("ab", {"alpha": 0.0, "beta": 0.5}, 0.180525, 0.293001),
    ("ab", {"alpha": 0.0, "beta": 0.0}, 0.379034, 0.673106),
    ("ab", {"alpha": 0.5, "beta": -0.5}, 0.351557, 0.681835),
]
PAIRS = [((0.7, 0.2, 0.1), (0.5, 0.3, 0.2)), ((0.4, 0.3, 0.2, 0.1), (0.25, 0.45, 0.1, 0.2))]
CASES = [(name, {}) for name in names()] + [(n, p) for n, p, *_ in WORKED if p]


def log(values):
    return torch.tensor(values).log()


def random_logits(shape, seed, scale=2.0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def test_every_loss_is_compared_with_a_reference():
    assert set(REFERENCES) == set(names())


@pytest.mark.parametrize(("name", "params", "first", "second"), WORKED)
def test_worked_values(name, params, first, second):
    for (p, q), value in zip(PAIRS, (first, second), strict=True):
        assert float(build(name, **params)(log(q), log(p))) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_values_equal_the_reference(name, params):
    student, teacher = random_logits((3, 5, 47), 1), random_logits((3, 5, 47), 2)
    ours = build(name, **params)(student, teacher)
    assert ours.shape == (3, 5)
    for at in np.ndindex(3, 5):
        expected = REFERENCES[name](softmax(teacher[at]), softmax(student[at]), **params)
        assert float(ours[at]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "params"), [c for c in CASES if c[0] != "akl"])
def test_gradient_by_finite_differences(name, params):
    student = random_logits((2, 9), 3).requires_grad_()
    teacher = random_logits((2, 9), 4)
    assert torch.autograd.gradcheck(lambda s: build(name, **params)(s, teacher), student)


def test_akl_gradient_holds_the_weight_still():
    student, teacher = random_logits((1, 9), 3).requires_grad_(), random_logits((1, 9), 4)
    p, q = softmax(teacher[0]), softmax(student[0].detach())
    f, r = REFERENCES["fkl"](p, q), REFERENCES["rkl"](p, q)
    a = (REFERENCES["akl"](p, q) - r) / (f - r)  # the weight behind the reference's value
    (got,) = torch.autograd.grad(build("akl")(student, teacher).sum(), student)
    (forward,) = torch.autograd.grad(build("fkl")(student, teacher).sum(), student)
    (reverse,) = torch.autograd.grad(build("rkl")(student, teacher).sum(), student)
    torch.testing.assert_close(got, a * forward + (1 - a) * reverse)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_zero_with_zero_gradient_at_equality(name, params):
    teacher = random_logits((4, 31), 5, dtype=torch.float32)
    student = (teacher + 3).requires_grad_()  # a constant added to logits changes nothing
    value = build(name, **params)(student, teacher)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(4), atol=2e-6, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros(4, 31), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_not_negative_and_shift_invariant(name, params):
    student, teacher = random_logits((64, 31), 6, 4.0), random_logits((64, 31), 7, 4.0)
    divergence = build(name, **params)
    value = divergence(student, teacher)
    assert (value > 0).all()
    torch.testing.assert_close(divergence(student - 50, teacher + 50), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", names())
def test_fp32_is_close_to_float64(name):
    student, teacher = random_logits((16, 1000), 8, 3.0), random_logits((16, 1000), 9, 3.0)
    single = build(name)(student.float(), teacher.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), build(name)(student, teacher), rtol=2e-5, atol=1e-6)
    assert build(name)(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", names())
def test_extreme_logits_and_padding_are_finite(name):
    inf = float("inf")
    student = torch.tensor([[1e4, 0.0, -1e4, -inf], [0.0, 1.0, 2.0, -inf]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4, -inf], [2.0, 1.0, 0.0, -inf]])
    value = build(name)(student, teacher)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()
    unpadded = build(name)(student[:, :3], teacher[:, :3])
    torch.testing.assert_close(value, unpadded)


@pytest.mark.parametrize("name", names())
def test_no_gradient_reaches_the_teacher(name):
    student, teacher = random_logits((2, 5), 1).requires_grad_(), random_logits((2, 5), 2).requires_grad_()
    build(name)(student, teacher).sum().backward()
    assert teacher.grad is None


def test_ab_contains_both_kl():
    student, teacher = random_logits((8, 31), 10), random_logits((8, 31), 11)
    for (alpha, beta), name in {(1, 0): "fkl", (0, 1): "rkl"}.items():
        ours = build("ab", alpha=alpha, beta=beta)(student, teacher)
        torch.testing.assert_close(ours, build(name)(student, teacher), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("line", [(0.4, 0.0), (0.0, 0.4), (0.4, -0.4), (0.0, 0.0)])
@pytest.mark.parametrize("step", [1e-3, 1e-5, -1e-5])
def test_ab_is_continuous_across_its_lines_in_fp32(line, step):
    student, teacher = random_logits((8, 31), 12, 1.0), random_logits((8, 31), 13, 1.0)
    on = build("ab", alpha=line[0], beta=line[1])(student, teacher)
    near = build("ab", alpha=line[0] + step, beta=line[1] + step / 2)
    torch.testing.assert_close(near(student, teacher), on, rtol=abs(step) * 20, atol=0)
    torch.testing.assert_close(near(student.float(), teacher.float()).double(), on, rtol=abs(step) * 20 + 1e-5, atol=0)


def test_ab_near_a_line_keeps_its_digits():
    """The defining formula loses them in fp32: 1 % at beta = 1e-5."""
    student, teacher = random_logits((64, 31), 14, 0.3), random_logits((64, 31), 15, 0.3)
    for alpha, beta in [(0.5, 1e-5), (1e-5, 0.5), (1e-4, 1e-4), (0.01, -0.01)]:
        exact = torch.tensor(
            [REFERENCES["ab"](softmax(t), softmax(s), alpha, beta) for s, t in zip(student, teacher, strict=True)]
        )
        torch.testing.assert_close(
            build("ab", alpha=alpha, beta=beta)(student.float(), teacher.float()).double(),
            exact,
            rtol=1e-4,
            atol=0,
        )


@pytest.mark.parametrize("mu", [0.05, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("scale", [0.0, 0.5, 8.0])
def test_akl_head_without_a_full_sort(mu, scale):
    """Flat rows need the exact fallback, peaked ones the short prefix; both agree with a full sort."""
    probs = random_logits((6, 3000), 16, scale).softmax(-1)
    probs += torch.rand(probs.shape, generator=torch.Generator().manual_seed(1), dtype=probs.dtype) * 1e-9  # no ties
    gap = random_logits((6, 3000), 17).abs()
    order = probs.argsort(-1, descending=True)
    sorted_probs, sorted_gap = probs.gather(-1, order), gap.gather(-1, order)
    before = sorted_probs.cumsum(-1) - sorted_probs
    expected = (sorted_gap * (before < mu)).sum(-1)
    torch.testing.assert_close(head_gap(gap, probs, mu), expected)


def test_akl_counts_the_crossing_class_as_head():
    gap, probs = torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([[0.4, 0.35, 0.25]])
    assert head_gap(gap, probs, 0.5).item() == 11.0
    assert head_gap(gap, probs, 0.4).item() == 1.0


def test_a_loss_infinite_in_truth_is_reported_as_such():
    inf = float("inf")
    student, teacher = torch.tensor([[0.0, -inf]]), torch.tensor([[0.0, 0.0]])
    assert math.isinf(build("fkl")(student, teacher).item())
    assert math.isinf(build("ab", alpha=1.0, beta=0.0)(student, teacher).item())
    assert math.isfinite(build("rkl")(student, teacher).item())


def test_mistakes_say_what_is_allowed():
    with pytest.raises(ValueError, match="did you mean akl"):
        build("aklr")
    with pytest.raises(ValueError, match="did you mean alpha"):
        build("ab", alpah=0.1)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        build("akl", mu=1.5)
    with pytest.raises(ValueError, match="not a number"):
        build("ab", alpha="large")
    with pytest.raises(ValueError, match="must be finite"):
        build("ab", alpha=float("nan"))
    with pytest.raises(ValueError, match="common vocabulary"):
        build("fkl")(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="taken"):
        base.register("fkl")(base.Divergence)


def test_the_readmes_new_loss():
    """The page's own lines, run as they stand there."""
    page = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    block = page.split("## A new loss")[1].split('    @register("tilted")')[1].split("\n\nand ")[0]
    source = textwrap.dedent('    @register("tilted")' + block)
    names_ = {
        "register": base.register,
        "dataclass": dataclass,
        "Divergence": base.Divergence,
        "forward_kl": forward_kl,
    }
    try:
        exec(source, names_)
        student, teacher = random_logits((4, 9), 1), random_logits((4, 9), 2)
        torch.testing.assert_close(build("tilted", power=1.0)(student, teacher), build("fkl")(student, teacher))
        torch.testing.assert_close(build("tilted")(student, teacher), build("fkl")(student, 2 * teacher))
    finally:
        base._REGISTRY.pop("tilted", None)
