"""Divergences with their own parameters, which the trainer optimises together with the student's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.base import Divergence, find, names


class TrainableDivergence(nn.Module, Divergence):
    """A divergence that is a module: `from_log_probs` reads its own parameters.

    A call on logits uses plain autograd. `distill.losses.fused` computes the gradients to the parameters in the forward
    pass, like those to hidden states and head: `value_and_slope` adds them up, and `collected` returns the sums.
    """

    def prepare(self, classes: int, device: torch.device) -> None:
        """Create the parameters for a vocabulary; does nothing if they exist. A call on logits does this first.

        Args:
            classes: size of the vocabulary.
            device: where the parameters are created.
        """
        raise NotImplementedError

    def at(self, progress: float) -> None:
        """Called before each optimizer step and each checkpoint, with the share of the training that is done.

        For what changes by then, and for what the last step left: two calls without a step between them are as one.
        """

    def seen(self) -> dict[str, float]:
        """Means over the tokens since the last call, by name, for the curve of the training: usually none."""
        return {}

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return dict(self.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """See the base class."""
        self.load_state_dict(state)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None) -> Tensor:
        """The divergence per token `[...]` from logits `[..., V]`; see `Divergence.__call__`."""
        self.check(student_logits, teacher_logits, targets)
        self.prepare(student_logits.shape[-1], student_logits.device)
        student, teacher = self.log_probs(student_logits, teacher_logits.detach())
        value = self.from_log_probs(student, teacher, None if targets is None else targets.reshape(-1))
        return value.view(student_logits.shape[:-1])

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class. The gradients to the parameters are added to `sums`."""
        with torch.inference_mode(False), torch.enable_grad():
            student, teacher = (x.clone() if x.is_inference() else x for x in (student, teacher))
            free, own = student.detach().requires_grad_(), list(self.parameters())
            value = self.from_log_probs(free, teacher, targets)
            slope, *grads = torch.autograd.grad(value.sum(), [free, *own])
        for total, grad in zip(self.sums(), grads, strict=True):
            total += grad
        return value.detach(), slope

    def sums(self) -> list[Tensor]:
        """The gradient sums of the parameters, one tensor each, which `value_and_slope` adds to in place."""
        if "_sums" not in self.__dict__:
            self.__dict__["_sums"] = [torch.zeros_like(p) for p in self.parameters()]
        gradient_sums: list[Tensor] = self.__dict__["_sums"]
        return gradient_sums

    def collected(self) -> list[Tensor]:
        """The gradient sums of the parameters since the last call of this method, which are then reset."""
        gradient_sums = self.sums()
        del self.__dict__["_sums"]
        return gradient_sums


def trainable_names() -> list[str]:
    """The names of the registered divergences that have their own parameters."""
    return [name for name in names() if issubclass(find(name), TrainableDivergence)]
