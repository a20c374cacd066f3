"""Student-friendly knowledge distillation: a small network, trained with the student, simplifies the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.losses.base import register, weighed
from distill.losses.trainable import TrainableDivergence


@register("skd")
@dataclass(eq=False)
class StudentFriendlyKD(TrainableDivergence):
    """Forward KL(p' || q): p' is the teacher simplified by a small network that is trained with the student.

    The paper softens the teacher's logits (here with `loss.temperature`) and adds the output of an attention network to
    them, the learning simplifier. MGSR does not state its size. Here a linear layer maps the probabilities to `slots`
    vectors of `width`, which attend to each other, and another one maps them back to the vocabulary. The last layer
    starts at 0, so that training starts with forward KL. A token's value depends on no other token. The divergence
    alone would pull p' to the student's own distribution; cross-entropy on the data (`w_ce`) prevents this.

    Attributes:
        slots: number of vectors that a distribution is mapped to.
        width: size of each vector.
    """

    source = "Yuan et al. 2024 (SKD); MGSR table 7"
    formula = "KL(p' || q), p' = softmax(log p + simplifier(p))"
    at_limits = "fkl at the start"
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

    def attended(self, read: Tensor) -> Tensor:
        """The output of the attention `[N, slots * width]` for an input of the same shape."""
        slots = read.view(-1, self.slots, self.width)
        query, key, value = self.attend(slots).chunk(3, -1)
        return (slots + nn.functional.scaled_dot_product_attention(query, key, value)).flatten(1)

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        added = self.write(self.attended(self.read(teacher.exp().to(self.read.weight.dtype))))
        simple = (teacher + added).log_softmax(-1)
        return weighed(simple.exp(), simple - student)[1]

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class. Only the derivative of the attention uses autograd."""
        with torch.inference_mode(False), torch.no_grad():
            student, teacher = (x.clone() if x.is_inference() else x for x in (student, teacher))
            reader, writer = self.read.weight, self.write.weight
            p = teacher.exp().to(reader.dtype)
            read = (p @ reader.t()).requires_grad_()
            with torch.enable_grad():
                written = self.attended(read)
            simple = torch.addmm(teacher.to(writer.dtype), written, writer.t()).log_softmax(-1)
            slope = simple.exp()
            product, value = weighed(slope, simple.sub_(student))
            # d/dz_i = p'_i (log p'_i - log q_i - value), z the simplified logits
            by_logit = product.addcmul_(slope, value.unsqueeze(-1), value=-1)
            by_read, *by_attend = torch.autograd.grad(written, [read, *self.attend.parameters()], by_logit @ writer)
            into_reader, *into_attend, into_writer = self.sums()
            into_reader.addmm_(by_read.t(), p)
            into_writer.addmm_(by_logit.t(), written)
            for total, grad in zip(into_attend, by_attend, strict=True):
                total += grad
        return value, slope.neg_()
