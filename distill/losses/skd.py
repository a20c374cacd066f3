"""Student-friendly knowledge distillation: a teacher that a small trained network simplifies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.losses.base import register, weighed
from distill.losses.trainable import TrainableDivergence


@register("skd")
@dataclass(eq=False)
class StudentFriendlyKD(TrainableDivergence):
    """Forward KL(p' || q) to a teacher p' that a network trained with the student has simplified.

    The paper softens the teacher's logits (here `loss.temperature`) and adds to them what an attention network, the
    learning simplifier, makes of them. MGSR says nothing of its size. Here the probabilities are read into `slots`
    vectors of `width`, which attend to each other and are written back onto the vocabulary; the last layer starts at 0,
    so that training starts from forward KL. A token's value depends on no other token. The simplifier is drawn to what
    the student says already; cross-entropy on the data (`w_ce`) is what holds it.

    Attributes:
        slots: vectors that a distribution is read into.
        width: numbers in each.
    """

    source = "Yuan et al. 2024 (SKD); MGSR table 7"
    formula = "KL(p' || q), p' = softmax(log p + simplifier(p))"
    limits = "fkl at the start"
    slots: int = 8
    width: int = 8

    def __post_init__(self) -> None:
        super().__init__()
        if self.slots < 1 or self.width < 1:
            raise ValueError(f"slots={self.slots} and width={self.width} must be 1 or more")

    def prepare(self, classes: int, device: torch.device) -> None:
        """See the base class."""
        if hasattr(self, "read"):
            return
        size = self.slots * self.width
        self.read = nn.Linear(classes, size, bias=False)
        self.attend = nn.Linear(self.width, 3 * self.width)
        self.write = nn.Linear(size, classes, bias=False)
        nn.init.normal_(self.read.weight)  # a weighted mean of class vectors, as an embedding is
        nn.init.zeros_(self.write.weight)
        self.to(device)

    def simplified(self, teacher: Tensor) -> Tensor:
        """Log-probabilities `[N, V]` of the simplified teacher."""
        read = self.read(teacher.exp().to(self.read.weight.dtype)).view(-1, self.slots, self.width)
        query, key, value = self.attend(read).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        added = self.write((read + mixed).flatten(1))
        return (teacher + added).log_softmax(-1)

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        simple = self.simplified(teacher)
        return weighed(simple.exp(), simple - student)[1]
