"""The objective's terms, data that rows bring along, and a divergence's own optimizer settings."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, tiny_gpt2
from transformers import TrainerCallback, TrainingArguments

from distill.base.errors import UserError
from distill.config import load
from distill.config.objective import LossOptimizerConfig
from distill.data.encode import DEFAULTS, FILLER, IGNORE, LATE, ROLLOUT, STUDENT_TEXT, Collator, Encoded
from distill.losses import build
from distill.pipeline.plan import Plan
from distill.teacher.signal import LiveTeacher
from distill.training.distiller import Distiller
from distill.training.micro_batch import MicroBatch
from distill.training.objective import Objective, Term, objective_terms
from distill.training.trainer import DistillTrainer

SPANS = "spans"  # an extra of these tests, per row
DEFAULTS[SPANS] = ()


def rows(count=8):
    """Rows of 2 to 6 response tokens; every third has no spans, the others one or two."""
    made = []
    for n in range(count):
        response = [1 + (7 * i + 3 * n) % (VOCAB - 1) for i in range(2 + n % 5)]
        spans = [(0, 2)] if len(response) < 5 else [(0, 3), (2, len(response))]
        prompt = [1 + (5 * i + n) % (VOCAB - 1) for i in range(1 + n % 4)]
        made.append(Encoded(f"r{n}", prompt, response, {SPANS: spans} if n % 3 else {}))
    return made


class Neighbours(Term):
    """A term over neighbouring tokens: a text's mean over its spans of ||q_j q_(j+1) - p_j p_(j+1)||^2 a token."""

    name = "neighbours"

    def count(self, inputs):
        return sum(bool(spans) for spans in inputs["extras"].get(SPANS, ()))

    def forward(self, batch):
        q = batch.student_head(batch.student_hidden).softmax(-1)
        p = batch.teacher_head(batch.teacher_hidden).softmax(-1)
        first, second = q[:-1] * q[1:], p[:-1] * p[1:]
        distances = (first - second).square().sum(-1)  # of each position and the next, also across rows
        total = 0.0
        for row, spans in enumerate(batch.extras[SPANS]):
            for begin, end in spans:
                chosen = (batch.rows == row) & (batch.places >= begin) & (batch.places < end - 1)
                total = total + distances[chosen[:-1]].sum() / (end - begin) / len(spans)
        return total


def pair():
    return tiny_gpt2(), tiny_gpt2(hidden=24, seed=9)


def dense(student, teacher, given, w_ce, w_kd, weight):
    """The objective in float64 from whole logits, row by row without padding."""
    tokens = ce = kd = near = texts = 0
    for row in given:
        ids = torch.tensor([[*row.prompt, *row.response]])
        start, targets = len(row.prompt) - 1, torch.tensor(row.response)
        logits, other = (model(ids).logits[0, start:-1] for model in (student, teacher))
        ce = ce + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        kd = kd + build("ab")(logits, other).sum()
        tokens += len(row.response)
        q, p = logits.softmax(-1), other.softmax(-1)
        spans = row.extras.get(SPANS, ())
        texts += bool(spans)
        for begin, end in spans:
            for j in range(begin, end - 1):
                near = near + (q[j] * q[j + 1] - p[j] * p[j + 1]).pow(2).sum() / (end - begin) / len(spans)
    return w_ce * ce / tokens + w_kd * kd / tokens + weight * near / texts


def reference(given, *weights):
    student, teacher = (model.double() for model in pair())
    loss = dense(student, teacher, given, *weights)
    loss.backward()
    return loss.detach(), {f"student.{n}": p.grad for n, p in student.named_parameters()}


WEIGHTS = (0.4, 0.8, 100.0)  # the neighbours' term is small beside the others


def distiller(**more):
    student, teacher = pair()
    w_ce, w_kd, weight = WEIGHTS
    terms = [*objective_terms(build("ab"), w_ce, w_kd), Neighbours(weight)]
    return Distiller(student, LiveTeacher(teacher), terms, **more)


def test_a_term_over_neighbouring_tokens_has_its_place():
    """One micro-batch in float64, value and gradient; the term's share of both is not small."""
    model = distiller().double()
    found = model(**Collator(0)(rows()))
    found["loss"].backward()
    loss, gradients = reference(rows(), *WEIGHTS)
    torch.testing.assert_close(found["loss"].detach(), loss, rtol=1e-9, atol=0)
    _, without = reference(rows(), *WEIGHTS[:2], 0.0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-6, atol=1e-10, msg=name)
    assert max((gradients[n] - without[n]).abs().max() / gradients[n].abs().max() for n in gradients) > 0.1
    assert found["neighbours_count"] == 5 and int(found["ce_count"]) == int(found["kd_count"]) == int(found["tokens"])


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to see."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.seen = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class Tokenizer:
    def save_pretrained(self, folder):
        pass


def trained(tmp_path, model, given, steps=1, micro=8, callback=None, loss_optimizer=None, **arguments):
    """A trainer that has taken steps of all rows each."""
    settings = {"learning_rate": 0.0, "max_grad_norm": 1e9, "weight_decay": 0.0, **arguments}
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=len(given) // micro,
        max_steps=steps, save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        label_names=["labels"], use_cpu=True, seed=3, logging_steps=1, **settings,
    )  # fmt: skip
    more = {"callbacks": [callback or Gradients()]}
    if loss_optimizer is not None:
        more["loss_optimizer"] = loss_optimizer
    trainer = DistillTrainer(model, args, given, given, Tokenizer(), 0, len(given), lambda _: 0.0, **more)
    trainer.train()
    return trainer


@pytest.mark.parametrize("micro", [8, 2, 1])
def test_its_mean_is_over_the_global_batch(tmp_path, micro):
    """8x1 is 2x4 is 1x8, through the trainer, also where a micro-batch has no text with spans."""
    keep = Gradients()
    trained(tmp_path, distiller(), rows(), micro=micro, callback=keep)
    _, gradients = reference(rows(), *WEIGHTS)
    assert keep.seen.keys() <= gradients.keys() and keep.seen
    for name, found in keep.seen.items():
        torch.testing.assert_close(found.double(), gradients[name], rtol=1e-4, atol=2e-6, msg=name)


def test_the_published_mean_takes_each_micro_batchs_own_count(tmp_path):
    """A mean over micro-batches of their means, of each term."""
    keep, given = Gradients(), [row for row in rows() if row.extras][:4]
    trained(tmp_path, distiller(mean="micro_batches"), given, micro=1, callback=keep)
    gradients = [reference([row], *WEIGHTS)[1] for row in given]
    for name, found in keep.seen.items():
        expected = sum(g[name] for g in gradients) / len(given)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-6, msg=name)


def test_the_validation_loss_is_the_sum_of_weighted_means(tmp_path):
    trainer = trained(tmp_path, distiller(), rows(), micro=2)
    metrics = trainer.evaluate()
    loss, _ = reference(rows(), *WEIGHTS)
    assert metrics["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    names = {"eval_ce", "eval_kd", "eval_neighbours"}
    assert names <= metrics.keys() and "eval_lm" not in metrics
    weighted = sum(w * metrics[f"eval_{n}"] for w, n in zip(WEIGHTS, ("ce", "kd", "neighbours"), strict=True))
    assert metrics["eval_loss"] == pytest.approx(weighted)


def test_terms_without_weight_are_measured_in_validation_alone():
    student, teacher = pair()
    model = Distiller(student, LiveTeacher(teacher), [*objective_terms(build("ab"), 0.0, 1.0), Neighbours(0.0)])
    batch = Collator(0)(rows())
    assert model.train()(**batch).keys() == {"loss", "tokens", "kd_sum", "kd_count"}
    assert {"ce_sum", "kd_sum", "neighbours_sum"} <= model.eval()(**batch).keys()
    alone = Distiller(student, LiveTeacher(teacher), [*objective_terms(build("ab"), 0.0, 1.0)[1:], Neighbours(1.0)])
    assert "ce_sum" not in alone.eval()(**batch)
    nothing = Distiller(student, None, [Neighbours(1.0)]).train()(**Collator(0)([FILLER]))
    assert float(nothing["loss"].detach()) == 0 and nothing["loss"].requires_grad


def test_terms_that_do_not_go_together():
    with pytest.raises(ValueError, match="ce, ce: each name must stand once"):
        Objective([*objective_terms()[:1], *objective_terms()[:1]])
    with pytest.raises(ValueError, match="go together"):
        objective_terms(build("ab"), 1.0, 0.0)
    with pytest.raises(ValueError, match="go together"):
        objective_terms(None, 1.0, 1.0)
    with pytest.raises(ValueError, match="a divergence and a teacher go together"):
        Distiller(tiny_gpt2(), None, objective_terms(build("ab"), 0.0, 1.0))


def test_the_page_adds_a_term():
    page = (Path(__file__).parents[1] / "docs" / "objective.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    space = {"Term": Term, "IGNORE": IGNORE, "torch": torch}
    exec(code, space)
    student, given = tiny_gpt2(), [*rows(), FILLER]
    found = Distiller(student, None, [space["LastToken"](1.0)]).train()(**Collator(0)(given))
    ends = [(torch.tensor([[*row.prompt, *row.response]]), row.response[-1]) for row in rows()]
    expected = -sum(student(ids).logits[0, -2].log_softmax(-1)[token] for ids, token in ends) / len(ends)
    torch.testing.assert_close(found["loss"], expected)


def test_positions_know_their_row_and_place():
    given = [Encoded("a", [5, 6], [7, 8, 9]), FILLER, Encoded("b", [5], [3, 4], {LATE: True})]
    inputs = Collator(0)(given)
    valid = inputs["labels"] != IGNORE
    batch = MicroBatch(inputs, valid, tiny_gpt2(), torch.zeros(5, 16))
    assert batch.rows.tolist() == [0, 0, 0, 2, 2] and batch.places.tolist() == [0, 1, 2, 0, 1]
    assert batch.targets.tolist() == [7, 8, 9, 3, 4] and batch.student_text is None
    marked = [replace(given[0], extras={STUDENT_TEXT: True}), *given[1:]]
    inputs = Collator(0)(marked)
    batch = MicroBatch(inputs, inputs["labels"] != IGNORE, tiny_gpt2(), torch.zeros(5, 16))
    assert batch.student_text.tolist() == [True] * 3 + [False] * 2


def test_extras_of_a_batch_have_an_entry_a_row_or_a_token():
    drawn = torch.arange(6.0).view(2, 3)
    given = [
        Encoded("data", [5], [6, 7, 8], {SPANS: [(0, 2)]}),
        Encoded("own", [5], [6, 7], {STUDENT_TEXT: True, LATE: True, ROLLOUT: drawn}),
        FILLER,
    ]
    extras = Collator(0)(given)["extras"]
    assert extras[SPANS] == [[(0, 2)], (), ()] and extras[STUDENT_TEXT] == extras[LATE] == [False, True, False]
    assert torch.equal(extras[ROLLOUT], torch.cat([torch.tensor([[0.0, 1.0, 0.0]] * 3), drawn]))
    assert Collator(0)([replace(given[0], extras={}), FILLER])["extras"] == {}
    new = [Encoded("a", [5], [6], {"mark": 1}), Encoded("b", [5], [6], {"mark": 2})]
    assert Collator(0)(new)["extras"] == {"mark": [1, 2]}
    with pytest.raises(ValueError, match="row c lacks the extra mark"):
        Collator(0)([*new, Encoded("c", [5], [6])])
    with pytest.raises(ValueError, match="per token in some rows"):
        Collator(0)([new[0], Encoded("c", [5], [6], {"mark": torch.zeros(1, 1)})])


def test_an_extra_that_does_not_fit_its_response_is_refused():
    with pytest.raises(ValueError, match=r"extra rollout is \[3, 2\], and the response has 2 tokens"):
        Encoded("a", [5], [6, 7], {ROLLOUT: torch.zeros(3, 2)})
    row = Encoded("a", [5], [6, 7], {ROLLOUT: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="response has 1 tokens"):
        replace(row, response=[6])
    with pytest.raises(ValueError, match=r"must be \[2, k\]"):
        Encoded("a", [5], [6, 7], {ROLLOUT: torch.zeros(2)})


def test_a_policy_gradient_is_the_reverse_kl_on_rows_that_were_not_drawn():
    """In a batch where other rows were: their default is what makes it so."""
    student, teacher = pair()
    given = [replace(row, extras={}) for row in rows(4)]
    drawn = replace(given[0], extras={ROLLOUT: torch.rand(len(given[0].response), 3)})
    model, plain = (Distiller(student, LiveTeacher(teacher), objective_terms(build(name), 0.0, 1.0)).eval()
                    for name in ("minillm", "rkl"))  # fmt: skip
    both = model(**Collator(0)([drawn, *given[1:]]), num_items_in_batch=1)["loss"]
    first = model(**Collator(0)([drawn]), num_items_in_batch=1)["loss"]
    torch.testing.assert_close(both - first, plain(**Collator(0)(given[1:]), num_items_in_batch=1)["loss"])


def skd(tmp_path, scale=1.0, steps=1, loss_optimizer=None, **arguments):
    """Weights after steps with a trained network; `scale` multiplies the network's gradients."""
    student, teacher = pair()
    torch.manual_seed(5)
    divergence = build("skd", slots=2, width=4)
    divergence.prepare(VOCAB, torch.device("cpu"))
    if scale != 1:
        for parameter in divergence.parameters():
            parameter.register_hook(lambda gradient: gradient * scale)
    model = Distiller(student, LiveTeacher(teacher), objective_terms(divergence, 1.0, 1.0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = {"learning_rate": 1e-2, "lr_scheduler_type": "linear", **arguments}
    trainer = trained(tmp_path, model, rows(), steps, 4, None, loss_optimizer, **arguments)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    own, others = ({n for n in weights if ("objective." in n) == is_own} for is_own in (True, False))
    assert own and others
    return trainer, start, weights, own, {n for n in others if n.startswith("student.")}


def test_a_losss_own_learning_rate_moves_its_parameters_alone(tmp_path):
    _, start, still, own, students = skd(tmp_path, loss_optimizer=LossOptimizerConfig(lr=1e-30))
    _, _, as_student, _, _ = skd(tmp_path)
    trainer, _, far, _, _ = skd(tmp_path, loss_optimizer=LossOptimizerConfig(lr=1.0))
    assert all((start[n] - still[n]).abs().max() < 1e-20 for n in own)
    assert all(torch.equal(still[n], far[n]) and torch.equal(still[n], as_student[n]) for n in students)
    moved = max(float((far[n] - start[n]).abs().max()) for n in own)
    assert moved == pytest.approx(1.0, rel=1e-3)  # Adam's first step
    assert max(float((as_student[n] - start[n]).abs().max()) for n in own) == pytest.approx(1e-2, rel=1e-3)
    trainer, *_ = skd(tmp_path, steps=4, loss_optimizer=LossOptimizerConfig(lr=1.0))
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [1e-2, 1e-2, 1.0, 1.0]
    trainer.lr_scheduler.step(2)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([5e-3, 5e-3, 0.5, 0.5])  # half way down a linear schedule
    lines = [line for line in trainer.state.log_history if "learning_rate" in line]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])  # the student's


def test_a_losss_own_weight_decay(tmp_path):
    _, start, plain, own, students = skd(tmp_path)
    _, _, decayed, _, _ = skd(tmp_path, loss_optimizer=LossOptimizerConfig(weight_decay=0.5))
    assert all(torch.equal(plain[n], decayed[n]) for n in students)
    for name in own:
        expected = torch.zeros_like(start[name]) if name.endswith("bias") else 1e-2 * 0.5 * start[name]
        torch.testing.assert_close(plain[name] - decayed[name], expected, rtol=1e-3, atol=1e-6)


def test_own_clipping_keeps_a_networks_gradient_out_of_the_students(tmp_path):
    """SGD, whose step follows the size of gradients; both norms are far above their limits."""
    sgd = {"optim": "sgd", "max_grad_norm": 0.01}
    apart = LossOptimizerConfig(max_grad_norm=0.02)
    one, start, weights, own, students = skd(tmp_path, loss_optimizer=apart, **sgd)
    large, _, scaled, _, _ = skd(tmp_path, scale=1000.0, loss_optimizer=apart, **sgd)
    assert all(torch.equal(weights[n], scaled[n]) for n in students)
    norms = [[line["grad_norm"] for line in t.state.log_history if "grad_norm" in line] for t in (one, large)]
    assert norms[0] == norms[1]
    for names, limit in ((own, 0.02), (students, 0.01)):
        step = math.sqrt(sum(float((scaled[n] - start[n]).square().sum()) for n in names))
        assert step == pytest.approx(1e-2 * limit, rel=1e-2)
    _, _, together, _, _ = skd(tmp_path, scale=1000.0, **sgd)
    assert any(not torch.equal(weights[n], together[n]) for n in students)


def test_settings_that_are_the_students_change_no_bit(tmp_path):
    _, _, plain, _, _ = skd(tmp_path, steps=5, weight_decay=0.1)
    same = LossOptimizerConfig(lr=1e-2, weight_decay=0.1)
    _, _, stated, _, _ = skd(tmp_path, steps=5, weight_decay=0.1, loss_optimizer=same)
    assert all(torch.equal(plain[n], stated[n]) for n in plain)


def test_optimizer_settings_of_a_loss_are_checked_and_part_of_its_key():
    settings = load(["model=micro", "loss=skd"])
    assert "optimizer" not in settings.loss.determining and settings.loss.optimizer == LossOptimizerConfig()
    keys = [
        Plan(load(["model=micro", "loss=skd", *words])).student.key
        for words in ([], ["loss.optimizer.lr=null"], ["loss.optimizer.lr=0.01"], ["loss.optimizer.max_grad_norm=1"])
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    for loss in ("ab", "sft"):
        with pytest.raises(UserError, match="has none; leave it out" if loss == "ab" else "sft has no divergence"):
            load(["model=micro", f"loss={loss}", "loss.optimizer.lr=0.01"])
    with pytest.raises(UserError, match="greater than 0"):
        load(["model=micro", "loss=skd", "loss.optimizer.max_grad_norm=0"])
