"""Divergences with parameters of their own, which the trainer optimises beside the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.losses.base import Divergence, find, names


class TrainableDivergence(nn.Module, Divergence):
    """A module whose `from_log_probs` reads its own parameters.

    The dense form is plain autograd. In chunks the gradients to the parameters are summed up during the forward pass,
    as those to hidden states and head are, and `collected` hands them over.
    """

    def prepare(self, classes: int, device: torch.device) -> None:
        """Make the parameters for a vocabulary, once; the first call does it by itself."""
        raise NotImplementedError

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None) -> Tensor:
        """As a divergence's call: `[..., V]` twice to `[...]`."""
        self.check(student_logits, teacher_logits, targets)
        self.prepare(student_logits.shape[-1], student_logits.device)
        student, teacher = self.log_probs(student_logits, teacher_logits.detach())
        value = self.from_log_probs(student, teacher, None if targets is None else targets.reshape(-1))
        return value.view(student_logits.shape[:-1])

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class; gradients to the parameters are added to what `collected` gives."""
        with torch.inference_mode(False), torch.enable_grad():
            student, teacher = (x.clone() if x.is_inference() else x for x in (student, teacher))
            free, own = student.detach().requires_grad_(), list(self.parameters())
            value = self.from_log_probs(free, teacher, targets)
            slope, *grads = torch.autograd.grad(value.sum(), [free, *own])
        for total, grad in zip(self.sums(), grads, strict=True):
            total += grad
        return value.detach(), slope

    def sums(self) -> list[Tensor]:
        """Gradient sums by the parameters, for `value_and_slope` to add to."""
        if "_sums" not in self.__dict__:
            self.__dict__["_sums"] = [torch.zeros_like(p) for p in self.parameters()]
        held: list[Tensor] = self.__dict__["_sums"]
        return held

    def collected(self) -> list[Tensor]:
        """Gradient sums by the parameters since the last time."""
        held = self.sums()
        del self.__dict__["_sums"]
        return held


def trainable_names() -> list[str]:
    """The registered divergences that have parameters of their own."""
    return [name for name in names() if issubclass(find(name), TrainableDivergence)]
