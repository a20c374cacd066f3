"""A student beside its teacher on the same texts: agreement and exposure bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.base.console import say
from distill.config.data import SplitConfig
from distill.config.evaluation import EvalConfig
from distill.data.encode import Encoded, Encoder
from distill.data.examples import Example
from distill.data.sets import Dataset, choose
from distill.evaluation.agreement import ROWS, agreement
from distill.evaluation.exposure import LENGTHS, excess_error
from distill.evaluation.responses import Scored, read_responses
from distill.models.tokenizers import pad_id
from distill.pipeline.nodes import Maker, Node
from distill.pipeline.stages.training import HiddenStates
from distill.pipeline.store import Spec
from distill.teacher.signal import StoredTeacher
from distill.training.encoding import training_encoder

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan


def sample(dataset: Dataset) -> list[Example]:
    """The examples of a set that both models read."""
    return choose(dataset.examples, SplitConfig(sample=ROWS))


def is_plain(decode: EvalConfig) -> bool:
    """Whether texts are drawn from the model's own distribution, over which exposure bias is a mean."""
    whole = decode.top_p == 1.0 and decode.top_k == 0 and decode.no_repeat_ngram_size == 0
    return decode.do_sample and decode.temperature == 1.0 and whole


class Reading(HiddenStates):
    """The teacher's hidden states over a set's references, or over its own responses, for all of its students."""

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset, written: Node | None):
        super().__init__(plan)
        self.dataset, self.written = dataset, written

    def rows(self) -> Sequence[Encoded]:
        """See the base class."""
        if self.written is None:
            return reference_rows(self.plan, self.dataset)
        return written_rows(self.plan, self.dataset, self.written)

    def loaded(self) -> Callable[[], Any]:
        """See the base class."""
        return lambda: self.plan.session.model("teacher")


def reference_rows(plan: Plan, dataset: Dataset) -> list[Encoded]:
    """Prompts of a set with their references.

    Raises:
        UserError: no row is short enough.
    """
    encoder = training_encoder(plan.config, plan.session.tokenizer("student"))
    return encoder.pairs(sample(dataset), plan.config.train.max_length).rows


def written_rows(plan: Plan, dataset: Dataset, written: Node) -> list[Encoded]:
    """Prompts of a set with the responses of an evaluation."""
    config, tokenizer = plan.config, plan.session.tokenizer("student")
    limit = config.train.max_prompt_length
    encoder = Encoder(tokenizer, config.data.template, limit, config.eval.overlong_prompt)
    prompts = {row.id: row.prompt for row in encoder.prompts(sample(dataset)).rows}
    eos = [tokenizer.eos_token_id]
    responses: list[Scored] = read_responses(plan.store.folder(written))
    return [
        Encoded(r.id, prompts[r.id], [*(r.token_ids or []), *(eos if r.ended else [])])
        for r in responses
        if r.id in prompts
    ]


class Agreement(Maker):
    """Top-1 agreement and both KLs on a set's references."""

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
    """Exposure bias (ExAccErr) on the student's and the teacher's responses."""

    quiet = True

    def __init__(self, plan: Plan, dataset: Dataset, own: Node, theirs: Node, reading: Node):
        self.plan, self.dataset, self.own, self.theirs, self.reading = plan, dataset, own, theirs, reading

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, decode = self.plan, self.plan.config.eval
        student, teacher = (plan.session.model(role) for role in ("student", "teacher"))
        by_student, by_teacher = (written_rows(plan, self.dataset, node) for node in (self.own, self.theirs))
        lengths = [n for n in LENGTHS if n <= decode.max_new_tokens] or [decode.max_new_tokens]
        stored = StoredTeacher(plan.store.folder(self.reading)).to(student.device)
        pad = pad_id(plan.session.tokenizer("student"))
        excess = excess_error(student, teacher, by_student, by_teacher, lengths, pad, stored)
        shown = ", ".join(f"{value:.1f} % at {length} tokens" for length, value in excess.items())
        say(f"exposure bias on {self.dataset.title} (ExAccErr): {shown or 'none, as the two models are the same'}")
        return [{"exaccerr": {str(length): value for length, value in excess.items()}, "rows": len(by_student)}]
