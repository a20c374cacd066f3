"""Comparison of a student with its teacher on the same texts: agreement and exposure bias."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.base.console import say
from distill.base.errors import UserError
from distill.config.data import SplitConfig
from distill.config.evaluation import EvalConfig
from distill.data.encode import Encoded
from distill.data.examples import Example
from distill.data.sets import Dataset, choose
from distill.evaluation.agreement import ROWS, agreement
from distill.evaluation.density import densities
from distill.evaluation.exposure import LENGTHS, excess_error
from distill.evaluation.responses import Scored, read_responses
from distill.evaluation.text import ngrams_per_text
from distill.losses import build
from distill.losses.dac_kl import DacKL
from distill.models.load import output_head
from distill.models.tokenizers import pad_id
from distill.pipeline.nodes import Maker, Node
from distill.pipeline.stages.training import HiddenStates
from distill.pipeline.store import Spec
from distill.teacher.signal import LiveTeacher, NewTextTeacher, StoredTeacher
from distill.training.encoding import evaluation_encoder, plain_sampling, training_encoder
from distill.training.job import teacher_dtype
from distill.training.trainer import DIVERGENCE
from distill.training.writer import StudentWriter

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan

CORRECTED = "corrections"  # part of the names of the random streams of the texts that `Corrections` writes
CORRECTIONS = "corrections.jsonl"


def sample(dataset: Dataset) -> list[Example]:
    """The examples of a set that student and teacher are compared on."""
    return choose(dataset.examples, SplitConfig(sample=ROWS))


def is_plain(decode: EvalConfig) -> bool:
    """Whether responses are sampled from the model's unmodified distribution, which exposure bias is defined over."""
    all_tokens = decode.top_p == 1.0 and decode.top_k == 0 and decode.no_repeat_ngram_size == 0
    return decode.do_sample and decode.temperature == 1.0 and all_tokens


class Reading(HiddenStates):
    """Stores the teacher's hidden states for the comparison with its students, once for all of them.

    Args:
        dataset: the set whose prompts are read.
        responses: the evaluation whose responses the teacher reads; None for the set's references.
    """

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset, responses: Node | None):
        super().__init__(plan)
        self.dataset, self.responses = dataset, responses

    def rows(self) -> Sequence[Encoded]:
        """See the base class."""
        if self.responses is None:
            return reference_rows(self.plan, self.dataset)
        return response_rows(self.plan, self.dataset, self.responses)

    def loaded(self) -> Callable[[], Any]:
        """See the base class."""
        return lambda: self.plan.session.model("teacher")


def reference_rows(plan: Plan, dataset: Dataset) -> list[Encoded]:
    """The sampled prompts of a set with their references, encoded.

    Raises:
        UserError: no row is short enough.
    """
    encoder = training_encoder(plan.config, plan.session.tokenizer("student"))
    return encoder.pairs(sample(dataset), plan.config.train.max_length).rows


def response_rows(plan: Plan, dataset: Dataset, evaluation: Node) -> list[Encoded]:
    """The sampled prompts of a set with an evaluation's responses, encoded. EOS is added to those that it ended."""
    tokenizer = plan.session.tokenizer("student")
    encoder = evaluation_encoder(plan.config, tokenizer)
    prompts = {row.id: row.prompt for row in encoder.prompts(sample(dataset)).rows}
    eos = [tokenizer.eos_token_id]
    responses: list[Scored] = read_responses(plan.store.folder(evaluation))
    return [
        Encoded(r.id, prompts[r.id], [*(r.token_ids or []), *(eos if r.ended else [])])
        for r in responses
        if r.id in prompts
    ]


class Agreement(Maker):
    """Measures top-1 agreement with the teacher and both KL divergences on a set's references."""

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset, reading: Node):
        self.plan, self.dataset, self.reading = plan, dataset, reading

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, student = self.plan, self.plan.session.model("student")
        teacher = StoredTeacher(plan.store.folder(self.reading)).to(student.device)
        pad = pad_id(plan.session.tokenizer("student"))
        values = agreement(student, teacher, reference_rows(plan, self.dataset), pad)
        kls = f"KL forward {values['fkl']:.3f}, reverse {values['rkl']:.3f} nats"
        say(f"agreement with the teacher on {self.dataset.title}: top-1 {values['top1']:.1f} %, {kls}")
        return [values]


class Exposure(Maker):
    """Measures the student's exposure bias (ExAccErr).

    It is measured at the paper's three lengths, as far as responses reach them, and at a quarter, half and the whole of
    the longest response.

    Args:
        dataset: the set whose prompts were answered.
        student_responses: the evaluation of the student.
        teacher_responses: the evaluation of the teacher.
        reading: the teacher's stored hidden states at the positions of its own responses.
    """

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset, student_responses: Node, teacher_responses: Node, reading: Node):
        self.plan, self.dataset, self.reading = plan, dataset, reading
        self.student_responses, self.teacher_responses = student_responses, teacher_responses

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, decode = self.plan, self.plan.config.eval
        student, teacher = (plan.session.model(role) for role in ("student", "teacher"))
        by_student = response_rows(plan, self.dataset, self.student_responses)
        by_teacher = response_rows(plan, self.dataset, self.teacher_responses)
        whole = decode.max_new_tokens
        names = {"quarter": -(-whole // 4), "half": -(-whole // 2), "whole": whole}
        names |= {str(length): length for length in LENGTHS if length <= whole}
        stored = StoredTeacher(plan.store.folder(self.reading)).to(student.device)
        pad = pad_id(plan.session.tokenizer("student"))
        lengths = sorted(set(names.values()))
        excess = excess_error(student, teacher, by_student, by_teacher, lengths, pad, stored)
        values = ", ".join(f"{value:.1f} % at {length} tokens" for length, value in excess.items())
        say(f"exposure bias on {self.dataset.title} (ExAccErr): {values or 'none, as the two models are the same'}")
        by_name = {name: excess[length] for name, length in names.items() if length in excess}
        return [{"exaccerr": by_name, "rows": len(by_student)}]


class Density(Maker):
    """Counts the classes that a student's DAC-KL keeps, by the teacher's probability, over a set's references."""

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset, reading: Node):
        self.plan, self.dataset, self.reading = plan, dataset, reading

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class.

        Raises:
            UserError: the training was made by an earlier version, which kept no network.
        """
        plan, session = self.plan, self.plan.session
        trained = plan.store.folder(plan.student)
        if not (trained / DIVERGENCE).is_file():
            raise UserError(
                f"{trained}: the network of its DAC-KL was not kept, since an earlier version made it; remove this"
                " folder and run the command again"
            )
        student, teacher = (session.model(role) for role in ("student", "teacher"))
        divergence = build("dac_kl", **plan.config.loss.parameters)
        assert isinstance(divergence, DacKL)
        classes = min(output_head(model).weight.shape[0] for model in (student, teacher))
        divergence.prepare(classes, student.device)
        divergence.restore(torch.load(trained / DIVERGENCE, weights_only=True, map_location=student.device))
        manifest = plan.store.manifest(plan.student)
        divergence.at(manifest["best_metric"]["step"] / manifest["steps"])  # the width of the edges at that step
        stored = StoredTeacher(plan.store.folder(self.reading)).to(student.device)
        rows, pad = reference_rows(plan, self.dataset), pad_id(session.tokenizer("student"))
        values = densities(divergence.eval(), student, teacher, rows, pad, stored)
        (positions,) = values.pop("positions")
        say(f"classes that DAC-KL keeps of a token on {self.dataset.title}: {sum(values['kept']):.2f}")
        return [{"density": values, "positions": round(positions)}]


class Corrections(Maker):
    """Lets the student answer a set's prompts and the teacher correct each answer once, as SCRG does in training."""

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset):
        self.plan, self.dataset = plan, dataset

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class. Each text before and after its correction is written to `corrections.jsonl`."""
        plan, session, config = self.plan, self.plan.session, self.plan.config
        tokenizer = session.tokenizer("student")
        rows = reference_rows(plan, self.dataset)
        teacher = NewTextTeacher(LiveTeacher(session.model("teacher")), None, remember=False)
        writer = StudentWriter(
            session.model("student"),
            teacher,
            build("fkl"),
            plain_sampling(config.eval),
            config.seed[0],
            tokenizer.eos_token_id,
            pad_id(tokenizer),
            config.train.max_length,
            session.vocabulary("student"),
            dtype=teacher_dtype(config),
        )
        before = writer.write(rows, CORRECTED, 0)
        after = writer.correct(rows, before, CORRECTED, [1], greedy=config.scrg_is_greedy)
        teacher.computed.clear()  # only a training step reads these
        lines = []
        for old, new, (correction,) in zip(before, after, writer.taken_corrections(), strict=True):
            written, corrected = (tokenizer.decode(s.row.response, skip_special_tokens=True) for s in (old, new))
            place = None if correction is None else round(correction.place * len(old.row.response))
            lines.append(
                {
                    "id": old.row.example_id,
                    "written": written,
                    "corrected": corrected,
                    "place": place,
                    "kl": None if correction is None else correction.kl,
                    "beginning": None if place is None else tokenizer.decode(old.row.response[:place]),
                    "student": None if place is None else tokenizer.decode(old.row.response[place : place + 1]),
                    "teacher": None if place is None else tokenizer.decode(new.row.response[place : place + 1]),
                }
            )
        (folders[0] / CORRECTIONS).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        values: dict[str, float] = {}
        for name in ("written", "corrected"):
            for n in (1, 2, 3):
                counts = ngrams_per_text([str(line[name]) for line in lines], n)
                values |= {f"{what}_{n}:{name}": value for what, value in counts.items()}
        values["agreed"] = 100 * sum(line["place"] is None for line in lines) / len(lines)
        shares = ", ".join(f"{values[f'distinct_1:{name}']:.1f} % as {name}" for name in ("written", "corrected"))
        say(f"texts of {self.dataset.title} corrected once by the teacher: different words of a text {shares}")
        return [{"values": values, "rows": len(lines)}]
