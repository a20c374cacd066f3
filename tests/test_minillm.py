"""MiniLLM's objective against float64 references, the exact gradient of whole responses' reverse KL, and its chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.losses import Drawn, build, fused


def drawn(student, teacher, mixed):
    return Drawn(*(torch.tensor(np.log(x)) for x in (student, teacher, mixed)))


def test_advantage_is_the_mean_reward_of_what_follows():
    """By hand: rewards log(.5/.25)=a, log(.2/.8)=-2a, log(.1/.1)=0, log(.4/.1)=2a, with a = log 2."""
    a, one = math.log(2), drawn([0.25, 0.8, 0.1, 0.1], [0.5, 0.2, 0.1, 0.4], [0.3, 0.7, 0.1, 0.2])
    plain = build("minillm", whiten=False, reward_scale=1.0)
    assert plain.long_term(one).tolist() == pytest.approx([0.0, a, 2 * a, 0.0])
    assert build("minillm", reward_scale=0.5).long_term(one).tolist() == pytest.approx([0.0, 2 * a, 4 * a, 0.0])
    clipped = build("minillm", reward_scale=1.0, reward_clip=a)  # a, -a, 0, a
    assert clipped.long_term(one).tolist() == pytest.approx([0.0, a / 2, a, 0.0])
    assert plain.long_term(drawn([0.1], [0.9], [0.1])).tolist() == [0.0]  # nothing comes after the last
    mixed, weight, advantage = plain.rollout_data([one])[0].T.double()
    assert mixed.tolist() == pytest.approx(np.log([0.3, 0.7, 0.1, 0.2]).tolist())
    assert weight.tolist() == pytest.approx([0.25 / 0.3, 0.8 / 0.7, 1.0, 0.5]) and advantage[2] == pytest.approx(2 * a)


def test_whitening_is_over_the_whole_rollout():
    rng = np.random.default_rng(0)
    texts = [drawn(*rng.uniform(0.05, 0.9, (3, n))) for n in (4, 1, 7)]
    every = torch.cat([data[:, 2] for data in build("minillm").rollout_data(texts)])
    assert float(every.mean()) == pytest.approx(0, abs=1e-6) and float(every.std(correction=0)) == pytest.approx(1)
    raw = torch.cat([data[:, 2] for data in build("minillm", whiten=False).rollout_data(texts)])
    assert np.corrcoef(raw, every)[0, 1] == pytest.approx(1)


def published(student, teacher, longest, discount=0.95, scale=0.5):
    """Advantages of a step's texts as the published code has them, by another way: dense [texts, longest], loops."""
    rewards = np.zeros((len(student), longest))
    for i, (q, p) in enumerate(zip(student, teacher, strict=True)):
        rewards[i, : len(q)] = (np.log(p) - np.log(q)) / scale
    advantages = np.zeros_like(rewards)
    for i, q in enumerate(student):
        for t in range(len(q)):
            later = sum(discount ** (k - t) * rewards[i, k] for k in range(t, len(q)))
            advantages[i, t] = later / (len(q) - t)
    whole = (advantages - advantages.mean()) / advantages.std()
    return [whole[i, : len(q)] for i, q in enumerate(student)]


def test_published_advantages():
    """Own reward in, discounted, over the tokens left, whitened over a step's batch with its padding."""
    rng = np.random.default_rng(3)
    sizes, longest = (4, 1, 7, 5), 12
    student, teacher = ([rng.uniform(0.05, 0.9, n) for n in sizes] for _ in range(2))
    d = build("minillm", own_reward=True, discount=0.95, whitened_over="step", weighted_kl=False)
    data = d.rollout_data([drawn(q, p, q) for q, p in zip(student, teacher, strict=True)])
    step = d.step_data(data, longest)
    for tokens, expected in zip(step, published(student, teacher, longest), strict=True):
        assert tokens[:, 2].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert tokens[:, :2].tolist() == data[[len(x) for x in data].index(len(tokens))][:, :2].tolist()
    plain = build("minillm")
    assert all(a is b for a, b in zip(plain.step_data(data, longest), data, strict=True))
    with pytest.raises(ValueError, match="discount=0 must be larger than 0"):
        build("minillm", discount=0)


def test_the_closed_form_without_the_weight():
    """Published code leaves w out of the closed-form KL alone."""
    rng = np.random.default_rng(5)
    student, teacher = (torch.tensor(rng.normal(size=(6, 9))) for _ in range(2))
    targets = torch.tensor(rng.integers(9, size=6))
    data = torch.tensor(np.stack([rng.uniform(-3, -1, 6), rng.uniform(0.5, 2, 6), rng.normal(size=6)], 1))
    weighted, plain = (
        build("minillm", weighted_kl=w).with_rollout_data(data)(student, teacher, targets) for w in (True, False)
    )
    kl = build("rkl")(student, teacher)
    torch.testing.assert_close(weighted - plain, (data[:, 1] - 1) * kl)


def reference(logits, teacher, token, mixed, weight, advantage, clip):
    """One token in float64, its gradient by central differences."""

    def value(z):
        q = np.exp(z - z.max())
        q /= q.sum()
        kl = sum(q[i] * (math.log(q[i]) - teacher[i]) for i in range(len(q)))
        ratio = q[token] / math.exp(mixed)
        kept = min(max(ratio, 1 - clip), 1 + clip)
        return weight * kl + max(-advantage * ratio, -advantage * kept)

    eye, h = np.eye(len(logits)), 1e-6
    return value(logits), np.array([(value(logits + h * e) - value(logits - h * e)) / (2 * h) for e in eye])


@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_of_drawn_tokens(seed):
    """Ratios on both sides of the clip and within, advantages of both signs."""
    rng = np.random.default_rng(seed)
    count, classes = 12, 9
    logits = rng.normal(size=(count, classes)) * 2
    teacher = torch.tensor(rng.normal(size=(count, classes)) * 2).log_softmax(-1)
    tokens = rng.integers(classes, size=count)
    own = torch.tensor(logits).log_softmax(-1)[torch.arange(count), torch.tensor(tokens)].numpy()
    mixed = own - np.log(np.resize([0.5, 0.9, 1.1, 1.7], count))  # ratios
    weight, advantage = rng.uniform(0.3, 1.5, count), rng.normal(size=count)
    data = torch.tensor(np.stack([mixed, weight, advantage], 1))
    student = torch.tensor(logits, requires_grad=True)
    values = build("minillm", clip=0.2).with_rollout_data(data)(student, teacher, torch.tensor(tokens))
    values.sum().backward()
    for i in range(count):
        value, gradient = reference(
            logits[i], teacher[i].numpy(), tokens[i], mixed[i], weight[i], advantage[i], clip=0.2
        )
        assert float(values[i].detach()) == pytest.approx(value, rel=1e-9)
        np.testing.assert_allclose(student.grad[i].numpy(), gradient, rtol=1e-4, atol=1e-7)


def test_beyond_the_clip_a_tokens_policy_has_no_gradient():
    teacher = torch.zeros(1, 4).log_softmax(-1)
    for ratio, advantage, free in [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False)]:
        student = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
        data = torch.tensor([[math.log(0.25 / ratio), 0.0, advantage]], dtype=torch.float64)
        build("minillm").with_rollout_data(data)(student, teacher, torch.tensor([2])).sum().backward()
        assert bool(student.grad.abs().sum() > 0) == free


def test_in_expectation_it_is_the_gradient_of_the_responses_reverse_kl():
    """Two-token responses, all V^2 of them: one reward follows the first token, so its mean is the whole sum."""
    classes = 4
    torch.manual_seed(3)
    first, second = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((classes,), (classes, classes)))
    p1, p2 = (torch.randn(s, dtype=torch.float64).log_softmax(-1) for s in ((classes,), (classes, classes)))
    whole = first.log_softmax(-1)[:, None] + second.log_softmax(-1)
    (whole.exp() * (whole - p1[:, None] - p2)).sum().backward()
    exact = first.grad.clone(), second.grad.clone()
    first.grad = second.grad = None
    loss, total = build("minillm", whiten=False, reward_scale=1.0, reward_clip=1e9), 0.0
    for a in range(classes):
        for b in range(classes):
            student, teacher = torch.stack([first, second[a]]), torch.stack([p1, p2[a]])
            tokens = torch.tensor([a, b])
            own, theirs = (x.log_softmax(-1).detach()[[0, 1], tokens] for x in (student, teacher))
            data = loss.rollout_data([Drawn(own, theirs, own)])[0].double()
            data[:, 2] = loss.long_term(Drawn(own, theirs, own))  # rollout_data is fp32
            total = total + whole[a, b].detach().exp() * loss.with_rollout_data(data)(student, teacher, tokens).sum()
    total.backward()
    torch.testing.assert_close(first.grad, exact[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(second.grad, exact[1], rtol=1e-6, atol=1e-8)


def test_chunks_slice_the_rollout_data_with_the_tokens():
    torch.manual_seed(0)
    count, classes = 37, 53
    hidden, weight = torch.randn(count, 6, dtype=torch.float64), torch.randn(classes, 6, dtype=torch.float64)
    theirs, other = torch.randn(count, 5, dtype=torch.float64), torch.randn(classes, 5, dtype=torch.float64)
    targets = torch.randint(classes, (count,))
    data = torch.stack([torch.randn(count) - 4, torch.rand(count), torch.randn(count)], 1).double()
    loss = build("minillm")
    grads = []
    for chunk in (None, 7):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunk is None:
            total = loss.with_rollout_data(data)(h @ w.T, theirs @ other.T, targets).sum()
        else:
            total = fused(loss, h, w, theirs, other, chunk, targets, rollout_data=data)
        total.backward()
        grads.append((total.detach(), h.grad, w.grad))
    for dense, chunked in zip(*grads, strict=True):
        torch.testing.assert_close(dense, chunked)
    with pytest.raises(TypeError, match="reads nothing of a token but its id"):
        fused(build("rkl"), hidden, weight, theirs, other, 7, targets, rollout_data=data)
    with pytest.raises(ValueError, match="rollout_data has 3 rows"):
        fused(loss, hidden, weight, theirs, other, 7, targets, rollout_data=data[:3])
