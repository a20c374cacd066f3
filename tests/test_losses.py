"""Every registered divergence: worked values, an independent reference, properties, limits, gradients."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import REFERENCES, hellinger, softmax

from distill.losses import base, build, names
from distill.losses.head import head_mask
from distill.losses.page import page

ROOT = Path(__file__).resolve().parents[1]

WORKED = [  # name, parameters, value at the first and the second pair of DESIGN 6
    ("fkl", {}, 0.085123, 0.135677),
    ("rkl", {}, 0.092033, 0.134273),
    ("tvd", {}, 0.200000, 0.250000),
    ("skl", {"mix": 0.1}, 0.069578, 0.108607),
    ("srkl", {"mix": 0.1}, 0.072828, 0.107940),
    ("jsd", {"teacher_weight": 0.5}, 0.021901, 0.033273),
    ("jsd", {"teacher_weight": 0.9}, 0.008185, 0.012035),
    ("bdkd", {"weight": 3.0}, 0.361221, 0.541303),
    ("akl", {"mu": 0.5}, 0.088578, 0.135115),
    ("akl_r", {"mu": 0.5}, 0.088578, 0.134835),
    ("ab", {"alpha": 0.2, "beta": 0.7}, 0.102591, 0.155982),
    ("ab", {"alpha": 0.1, "beta": 0.8}, 0.103613, 0.156088),
    ("ab", {"alpha": 0.5, "beta": 0.0}, 0.169748, 0.294502),
    ("ab", {"alpha": 0.0, "beta": 0.5}, 0.180525, 0.293001),
    ("ab", {"alpha": 0.0, "beta": 0.0}, 0.379034, 0.673106),
    ("ab", {"alpha": 0.5, "beta": -0.5}, 0.351557, 0.681835),
]
PAIRS = [((0.7, 0.2, 0.1), (0.5, 0.3, 0.2)), ((0.4, 0.3, 0.2, 0.1), (0.25, 0.45, 0.1, 0.2))]
CASES = [(name, {}) for name in names()] + [(n, p) for n, p, *_ in WORKED if p]
CASES += [
    ("weighted", {"forward": 0.25, "reverse": 0.75}),
    ("weighted", {"forward": 1.0, "reverse": 0.0}),
    ("alphanet", {"alphas": [0.5, 0.9]}),
    ("dkd", {"alpha": 0.5, "beta": 2.0}),
    ("fixed_clip", {"threshold": 0.1}),
    ("top_p_clip", {"mass": 0.6}),
    ("selective", {"rate": 0.2}),
    ("selective", {"rate": 1.0, "scope": "queue"}),
    ("slim", {"share": 0.3}),
    ("dac_kl", {"renormalise": "teacher"}),
    ("dac_kl", {"renormalise": "both"}),
    ("dac_kl", {"renormalise": "both", "parts": ("high_density",), "epsilon": 0.01, "epsilon_start": 0.01}),
]
CLIPPED = {"fixed_clip", "top_p_clip", "slim"}  # not 0 at equality
OF_SOME = {"selective", "filtration"}  # 0 at tokens that are not chosen
AT_TOKEN = {"dkd", "filtration", "slim"}  # of the response token's probability
UNNORMALISED = ("dac_kl", {})  # can be negative, and pulls the student to the kept classes even at equality
# Weights or classes that carry no gradient, so the value's own finite differences say something else.
HELD = {"akl", "akl_r", "slim", "todi", "csd", "adakd"}


def targets(shape, classes, seed=99):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


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
    at_token = targets((3, 5), 47)
    ours = build(name, **params)(student, teacher, at_token).detach()
    assert ours.shape == (3, 5)
    hardest = sorted(-np.log(softmax(student[at])[at_token[at]]) for at in np.ndindex(3, 5))[::-1]
    distances = sorted(hellinger(softmax(teacher[at]), softmax(student[at])) for at in np.ndindex(3, 5))
    for at in np.ndindex(3, 5):
        more = {**params, **({"target": int(at_token[at])} if name in AT_TOKEN else {})}
        if name == "selective":
            count = math.ceil(params.get("rate", 0.5) * 15)
            more["hard"] = -np.log(softmax(student[at])[at_token[at]]) >= hardest[count - 1] - 1e-12
        if name == "adakd":
            more["median"] = distances[7]
        expected = REFERENCES[name](softmax(teacher[at]), softmax(student[at]), **more)
        assert float(ours[at]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "params"), [c for c in CASES if c[0] not in HELD])
def test_gradient_by_finite_differences(name, params):
    student = random_logits((2, 9), 3).requires_grad_()
    teacher = random_logits((2, 9), 4)
    assert torch.autograd.gradcheck(lambda s: build(name, **params)(s, teacher, targets((2,), 9)), student)


@pytest.mark.parametrize("name", ["akl", "akl_r"])
def test_akl_gradient_holds_the_weight_still(name):
    student, teacher = random_logits((1, 9), 3).requires_grad_(), random_logits((1, 9), 4)
    p, q = softmax(teacher[0]), softmax(student[0].detach())
    f, r = REFERENCES["fkl"](p, q), REFERENCES["rkl"](p, q)
    a = (REFERENCES[name](p, q) - r) / (f - r)  # the weight behind the reference's value
    (got,) = torch.autograd.grad(build(name)(student, teacher).sum(), student)
    (forward,) = torch.autograd.grad(build("fkl")(student, teacher).sum(), student)
    (reverse,) = torch.autograd.grad(build("rkl")(student, teacher).sum(), student)
    torch.testing.assert_close(got, a * forward + (1 - a) * reverse)


def test_slims_gradient_holds_the_weight_still():
    student, teacher = random_logits((4, 60), 3).requires_grad_(), random_logits((4, 60), 4)
    at_token = targets((4,), 60)
    (got,) = torch.autograd.grad(build("slim")(student, teacher, at_token).sum(), student)
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    of_student, of_teacher = (x.gather(-1, at_token[:, None])[:, 0] for x in (q, p))
    weight = (of_teacher.exp() / (of_teacher.exp() + of_student.exp())).detach()
    few = torch.full_like(teacher, -torch.inf).scatter(-1, *reversed(teacher.topk(3)))
    kl = torch.nn.functional.kl_div(q, few.softmax(-1), reduction="none").sum(-1)
    (expected,) = torch.autograd.grad((weight * kl - (1 - weight) * of_student).sum(), student)
    torch.testing.assert_close(got, expected)


def test_slim_without_its_cross_entropy():
    """The KL at its weight alone: where the token is the student's own, its cross-entropy teaches nothing."""
    student, teacher = random_logits((4, 60), 3).requires_grad_(), random_logits((4, 60), 4)
    at_token = targets((4,), 60)
    whole, alone = (build("slim", cross_entropy=x)(student, teacher, at_token) for x in (True, False))
    of_student, of_teacher = (x.log_softmax(-1).gather(-1, at_token[:, None])[:, 0] for x in (student, teacher))
    rest = (of_student.exp() / (of_teacher.exp() + of_student.exp())).detach() * of_student
    torch.testing.assert_close(alone, whole + rest)
    (got,) = torch.autograd.grad(alone.sum(), student, retain_graph=True)
    (expected,) = torch.autograd.grad((whole + rest).sum(), student)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["todi", "csd", "adakd"])
def test_gradients_of_later_losses_hold_their_weights_still(name):
    student, teacher = random_logits((5, 9), 3).requires_grad_(), random_logits((5, 9), 4)
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    if name == "todi":
        a = (p.exp() / (p.exp() + q.exp())).detach()
        value = (a * p.exp() * (p - q) + (1 - a) * q.exp() * (q - p)).sum()
    elif name == "csd":
        gap = student - teacher  # logits as they are: a shift of all changes nothing
        weight = q.exp().detach()
        value = (weight[:, :, None] * weight[:, None] * (gap[:, :, None] - gap[:, None]) ** 2).sum() / 4
    else:
        distance = (1 - (p / 2 + q / 2).exp().sum(-1)).sqrt().detach()
        t = (-0.5 * (distance / distance.median()).log().tanh()).exp().unsqueeze(-1)
        both = (teacher / t).log_softmax(-1), (student / t).log_softmax(-1)
        value = (t**2 * torch.nn.functional.kl_div(*both, log_target=True, reduction="none")).sum()
    ours = build(name)(student, teacher).sum()
    torch.testing.assert_close(ours, value)
    (got,), (expected,) = (torch.autograd.grad(x, student, retain_graph=True) for x in (ours, value))
    torch.testing.assert_close(got, expected)


def test_adakd_chooses_fewer_tokens_while_the_loss_falls_and_more_while_it_rises():
    divergence = build("adakd", warmup=2, least=0.5, step=0.4, scale=0.0)
    teacher = random_logits((10, 9), 4)
    shares = []
    for nearness in [*[0.0] * 3, *[0.9] * 40, *[-3.0] * 40]:
        student = (1 - nearness) * random_logits((10, 9), 3) + nearness * teacher
        batch = base.WholeBatch(lambda d, s=student: d(s, teacher).sum(), training=True)
        chosen = divergence.for_batch(batch)
        values = chosen(student, teacher)
        assert int((values > 0).sum()) == round(10 / chosen.weight)
        torch.testing.assert_close(values.mean(), build("rkl")(student, teacher)[values > 0].mean())
        shares.append(1 / chosen.weight)
    assert shares[0] == 1.0 and min(shares) == 0.5 and shares[-1] == 1.0
    state = divergence.state()
    other = build("adakd", warmup=2, least=0.5, step=0.4)
    other.restore(state)
    assert other.state() == state
    validation = base.WholeBatch(lambda d: d(random_logits((10, 9), 5), teacher).sum())
    divergence.for_batch(validation)
    assert divergence.state() == state


def test_the_queue_holds_the_last_tokens_of_training():
    """A threshold over the queue, which validation does not touch, and which a checkpoint holds."""
    divergence = build("selective", rate=0.25, scope="queue", queue=8)
    batches = [
        (random_logits((6, 9), seed), random_logits((6, 9), seed + 50), targets((6,), 9, seed)) for seed in (1, 2)
    ]
    hardness = [torch.nn.functional.cross_entropy(s, y, reduction="none") for s, _, y in batches]

    def settled(batch, training):
        return divergence.for_batch(base.WholeBatch(lambda d: d(*batch).sum(), training=training)).threshold

    assert settled(batches[0], False) == hardness[0].sort(descending=True).values[1]
    assert len(divergence.state()["queue"]) == 0
    assert settled(batches[0], True) == hardness[0].sort(descending=True).values[1]
    state = divergence.state()
    threshold = settled(batches[1], True)
    queue = divergence.state()["queue"]
    assert len(queue) == 8 and threshold == queue.sort(descending=True).values[1]
    torch.testing.assert_close(queue[2:].sort().values, hardness[1].sort().values)
    assert all((hardness[0] == value).any() for value in queue[:2])
    divergence.restore(state)
    assert settled(batches[1], True) == threshold


@pytest.mark.parametrize("queue", [500, 2500, 30_000])
def test_the_queue_chooses_its_share_whatever_its_length(queue):
    """Also where it cuts a batch: tokens that leave it are neither its hardest nor its easiest."""
    divergence, shares = build("selective", rate=0.3, scope="queue", queue=queue), []
    for seed in range(4):
        student, at_token = random_logits((1000, 9), seed), targets((1000,), 9, seed)
        of_batch = base.WholeBatch(lambda d, s=student, y=at_token: d(s, s, y).sum(), training=True)
        threshold = divergence.for_batch(of_batch).threshold
        hard = torch.nn.functional.cross_entropy(student, at_token, reduction="none") >= threshold
        shares.append(float(hard.double().mean()))
    assert shares == pytest.approx([0.3] * 4, abs=0.05)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_zero_with_zero_gradient_at_equality(name, params):
    teacher = random_logits((4, 31), 5, dtype=torch.float32)
    # A constant added to logits changes nothing, but tvd's gradient is the sign of what rounding leaves of it.
    student = (teacher + (0 if name == "tvd" else 3)).requires_grad_()
    value = build(name, **params)(student, teacher, targets((4,), 31))
    value.sum().backward()
    if (
        name in CLIPPED or params.get("renormalise") == "teacher"
    ):  # what is left out of the teacher, and what pushes the student to leave it out
        more = {**params, **({"target": int(targets((4,), 31)[0])} if name in AT_TOKEN else {})}
        kept = REFERENCES[name](*[softmax(teacher[0])] * 2, **more)
        assert value[0].item() == pytest.approx(kept, abs=1e-6) and kept > 0
        return
    torch.testing.assert_close(value, torch.zeros(4), atol=2e-6, rtol=0)
    if (name, params) == UNNORMALISED:
        return
    torch.testing.assert_close(student.grad, torch.zeros(4, 31), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_not_negative_and_shift_invariant(name, params):
    student, teacher = random_logits((64, 31), 6, 4.0), random_logits((64, 31), 7, 4.0)
    divergence = build(name, **params)
    at_token = targets((64,), 31)
    value = divergence(student, teacher, at_token)
    if name == "dac_kl" and params.get("renormalise") != "teacher":  # with one kept class both sides are 1
        assert (value >= 0).all() or (name, params) == UNNORMALISED
    elif name in OF_SOME:
        assert (value >= 0).all() and (value > 0).any()
    else:
        assert (value > 0).all()
    torch.testing.assert_close(divergence(student - 50, teacher + 50, at_token), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", names())
def test_fp32_is_close_to_float64(name):
    student, teacher = random_logits((16, 1000), 8, 3.0), random_logits((16, 1000), 9, 3.0)
    at_token = targets((16,), 1000)
    single = build(name)(student.float(), teacher.float(), at_token)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), build(name)(student, teacher, at_token), rtol=2e-5, atol=1e-6)
    assert build(name)(student.bfloat16(), teacher.bfloat16(), at_token).dtype == torch.float32


@pytest.mark.parametrize("name", names())
def test_extreme_logits_and_padding_are_finite(name):
    inf = float("inf")
    student = torch.tensor([[1e4, 0.0, -1e4, -inf], [0.0, 1.0, 2.0, -inf]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4, -inf], [2.0, 1.0, 0.0, -inf]])
    at_token = torch.tensor([2, 0])
    value = build(name)(student, teacher, at_token)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()
    unpadded = build(name)(student[:, :3], teacher[:, :3], at_token)
    torch.testing.assert_close(value, unpadded)


@pytest.mark.parametrize("name", names())
def test_no_gradient_reaches_the_teacher(name):
    student, teacher = random_logits((2, 5), 1).requires_grad_(), random_logits((2, 5), 2).requires_grad_()
    build(name)(student, teacher, targets((2,), 5)).sum().backward()
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


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("scale", [0.0, 0.5, 8.0])
def test_head_without_a_full_sort(mass, scale):
    """Flat rows need the exact fallback, peaked ones the short prefix; both agree with a full sort."""
    probs = random_logits((6, 3000), 16, scale).softmax(-1)
    probs += torch.rand(probs.shape, generator=torch.Generator().manual_seed(1), dtype=probs.dtype) * 1e-9  # no ties
    order = probs.argsort(-1, descending=True)
    sorted_probs = probs.gather(-1, order)
    before = sorted_probs.cumsum(-1) - sorted_probs
    expected = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, before < mass)
    torch.testing.assert_close(head_mask(probs.log(), probs, mass), expected)


def test_a_head_of_ties_is_the_fewest_classes():
    probs = torch.full((2, 1000), 1e-3)
    assert head_mask(probs.log(), probs, 0.25).sum(-1).tolist() in ([250, 250], [251, 251])  # rounding decides


def test_the_crossing_class_belongs_to_the_head():
    probs = torch.tensor([[0.4, 0.35, 0.25]])
    assert head_mask(probs.log(), probs, 0.5).tolist() == [[True, True, False]]
    assert head_mask(probs.log(), probs, 0.4).tolist() == [[True, False, False]]


def test_limits_of_the_mixtures_and_weights():
    student, teacher = random_logits((8, 31), 18), random_logits((8, 31), 19)

    def value(name, **params):
        return build(name, **params)(student, teacher)

    close = {"rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(value("skl", mix=1e-8), value("fkl"), **close)
    torch.testing.assert_close(value("srkl", mix=1e-8), value("rkl"), **close)
    torch.testing.assert_close(value("jsd", teacher_weight=1e-6) / 1e-6, value("fkl"), **close)
    torch.testing.assert_close(value("jsd", teacher_weight=1 - 1e-6) / 1e-6, value("rkl"), **close)
    torch.testing.assert_close(value("jsd"), build("jsd")(teacher, student))  # symmetric at one half
    torch.testing.assert_close(value("weighted", forward=1.0, reverse=0.0), value("fkl"))
    torch.testing.assert_close(value("weighted", forward=0.0, reverse=1.0), value("rkl"))
    torch.testing.assert_close(value("akl") + value("akl_r"), value("fkl") + value("rkl"))
    torch.testing.assert_close(value("top_p_clip", mass=1.0), value("fkl"))
    torch.testing.assert_close(value("fixed_clip", threshold=1e-9), value("fkl"))
    torch.testing.assert_close(value("alphanet", alphas=[0.3, 0.3]), value("ab", alpha=0.3, beta=0.7))


def test_switches_of_published_code():
    student, teacher = random_logits((8, 31), 24), random_logits((8, 31), 25)
    p = teacher.softmax(-1)

    def value(name, **params):
        return build(name, **params)(student, teacher)

    torch.testing.assert_close(value("fkl", entropy=False), -(p * student.log_softmax(-1)).sum(-1))
    torch.testing.assert_close(
        value("ab", alpha=0.5, beta=0.0, lines="published"), value("ab", alpha=0.5, beta=0.0) / 2
    )
    torch.testing.assert_close(
        value("ab", alpha=0.5, beta=-0.5, lines="published"), value("ab", alpha=0.5, beta=-0.5) / 2
    )
    torch.testing.assert_close(value("ab", lines="published"), value("ab"))
    small = torch.tensor([[0.4, 0.35, 0.25]])
    assert head_mask(small.log(), small, 0.5, crossing=False).tolist() == [[True, False, False]]
    peaked = torch.tensor([[0.9, 0.06, 0.04]])  # the published file never puts the top class into the tail
    assert head_mask(peaked.log(), peaked, 0.5, crossing=False).tolist() == [[True, False, False]]
    flat = torch.linspace(1, 2, 1000).softmax(-1).unsqueeze(0).double()
    head, without = (head_mask(flat.log(), flat, 0.5, crossing=c).sum().item() for c in (True, False))
    assert without == head - 1
    assert not torch.allclose(value("akl", crossing="tail"), value("akl"))


def test_alphanet_per_batch_takes_one_divergence_for_all_tokens():
    student, teacher = random_logits((8, 31), 22), random_logits((8, 31), 23)
    two = [build("ab", alpha=a, beta=1 - a)(student, teacher) for a in (0.2, 0.8)]
    larger = max(two, key=lambda values: values.sum())
    assert (torch.stack(two).amax(0) > larger).any()  # per token it would be another
    torch.testing.assert_close(build("alphanet", per="batch")(student, teacher), larger)


def test_dkd_put_together_again_is_forward_kl():
    """Forward KL = binary KL + (1 - p_target) KL among the others."""
    student, teacher = random_logits((8, 31), 20), random_logits((8, 31), 21)
    at_token = targets((8,), 31)
    binary = build("dkd", alpha=1.0, beta=0.0)(student, teacher, at_token)
    among = build("dkd", alpha=0.0, beta=1.0)(student, teacher, at_token)
    rest = 1 - teacher.softmax(-1).gather(-1, at_token.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(binary + rest * among, build("fkl")(student, teacher))
    with pytest.raises(ValueError, match="targets"):
        build("dkd")(student, teacher)


def test_a_loss_infinite_in_truth_is_reported_as_such():
    inf = float("inf")
    student, teacher = torch.tensor([[0.0, -inf]]), torch.tensor([[0.0, 0.0]])
    assert math.isinf(build("fkl")(student, teacher).item())
    assert math.isinf(build("ab", alpha=1.0, beta=0.0)(student, teacher).item())
    assert math.isfinite(build("rkl")(student, teacher).item())
    far = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])
    for alpha, beta in [(-0.2, -0.3), (-1.0, 0.0), (0.0, -1.0)]:
        assert math.isinf(build("ab", alpha=alpha, beta=beta)(*far).item())
    one_hot = torch.tensor([[0.0, -inf, -inf]])  # all of the teacher's mass on the target: nothing left to compare
    student = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    value = build("dkd", alpha=0.0)(student, one_hot, torch.tensor([0]))
    value.sum().backward()
    assert value.item() == 0 and not student.grad.any()


def test_a_part_of_weight_zero_does_not_count_where_it_is_infinite():
    inf = float("inf")
    whole, cut = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.0, -inf]])
    for name, forward, student, teacher in [("fkl", 2.0, whole, cut), ("rkl", 0.0, cut, whole)]:
        student = student.clone().requires_grad_()
        value = build("weighted", forward=forward, reverse=2.0 - forward)(student, teacher)
        (got,) = torch.autograd.grad(value.sum(), student)
        expected = 2 * build(name)(student, teacher)
        (wanted,) = torch.autograd.grad(expected.sum(), student)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(got, wanted)
    infinite = build("dkd", alpha=0.0)(torch.tensor([[-inf, 1.0, 2.0]]), torch.zeros(1, 3), torch.tensor([0]))
    assert infinite.isfinite().all()


def test_half_precision_logits_are_rounded_once():
    """The gradient is formed and scaled in fp32: a loss scale beyond fp16's range does not overflow in between."""
    student = (random_logits((4, 31), 26, dtype=torch.float32) / 1).half().requires_grad_()
    teacher = random_logits((4, 31), 27, dtype=torch.float32)
    (build("fkl")(student, teacher.half()).sum() * 1e5).backward()
    exact = student.detach().float().requires_grad_()
    (build("fkl")(exact, teacher.half().float()).sum() * 1e5).backward()
    torch.testing.assert_close(student.grad, exact.grad.half())


def test_mistakes_say_what_is_allowed():
    with pytest.raises(ValueError, match="did you mean akl"):
        build("aklr")
    with pytest.raises(ValueError, match="did you mean alpha"):
        build("ab", alpah=0.1)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        build("akl", mu=1.5)
    with pytest.raises(ValueError, match="not a number"):
        build("ab", alpha="large")
    with pytest.raises(ValueError, match="list of numbers"):
        build("alphanet", alphas=0.5)
    with pytest.raises(ValueError, match="list of numbers"):
        build("alphanet", alphas=["a", 0.5])
    with pytest.raises(ValueError, match="two numbers"):
        build("alphanet", alphas=[0.5])
    with pytest.raises(ValueError, match="token or batch"):
        build("alphanet", per="row")
    with pytest.raises(ValueError, match="not a word"):
        build("alphanet", per=1)
    with pytest.raises(ValueError, match="whole number"):
        build("skd", slots=2.5)
    with pytest.raises(ValueError, match="must be finite"):
        build("ab", alpha=float("nan"))
    with pytest.raises(ValueError, match="common vocabulary"):
        build("fkl")(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="taken"):
        base.register("fkl")(base.Divergence)


def test_the_page_of_losses_is_what_the_losses_say():
    assert (ROOT / "docs" / "losses.md").read_text() == page(), "run `make docs`"
    for name in names():
        assert f"## {name}\n" in page() and base.find(name).formula and base.find(name).source


def test_the_page_that_adds_a_loss(tmp_path):
    """Followed to the letter in a copy of the project; both ways of writing it give the same training."""
    text = (ROOT / "docs" / "add_a_loss.md").read_text()
    blocks = dict(re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    module, _ = blocks.items()
    assert len(module[1].splitlines()) + len(blocks["conf/loss/renyi.yaml"].splitlines()) < 30
    commands = text.split("```sh\n")[1].split("```")[0].splitlines()
    faster, reference = (block.split("```")[0] for block in text.split("```python\n")[-2:])
    for name in ("distill", "conf", "experiments", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, source in blocks.items():
        (tmp_path / file).write_text(source)

    def run(command, *more):
        words = [sys.executable, *command.split()[1:], *more]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        return done.stdout

    assert "renyi" in run(commands[0])
    run(commands[1] + " paths.store=autograd paths.results=autograd")
    old = module[1][module[1].index("    def from_log_probs") :]
    (tmp_path / module[0]).write_text(module[1].replace(old, faster))
    run(commands[1] + " paths.store=by_hand paths.results=by_hand")
    curves = [next((tmp_path / s / "train").glob("*student-renyi*/curve.csv")) for s in ("autograd", "by_hand")]
    slow, fast = (np.genfromtxt(c, delimiter=",", names=True) for c in curves)
    np.testing.assert_allclose(slow["grad_norm"], fast["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(slow["loss"], fast["loss"], rtol=1e-4)
    with (tmp_path / "tests/reference.py").open("a") as file:
        file.write(f"\n\n{reference}")
    (tmp_path / "docs/losses.md").write_text(run("python -m distill.losses.page"))
    chosen = "(renyi or page or compared) and not adds"
    told = run("python -m pytest -q -p no:cacheprovider tests/test_losses.py -k", chosen)
    assert " passed" in told and "failed" not in told
