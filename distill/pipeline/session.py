"""What a plan holds while its artifacts are made: loaded models, and the makers that several artifacts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from distill.data.encode import EncodedSet
from distill.data.sets import Dataset
from distill.models.load import Shape, Weights, load_model, shape_of, supplied
from distill.pipeline import inputs
from distill.pipeline.keys import Given
from distill.pipeline.nodes import Node, Source, ensure
from distill.training.job import teacher_dtype

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role


class Session:
    """Loaded models and shared makers of one plan."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._makers: dict[Any, Any] = {}
        self._loaded: dict[Role, Any] = {}
        self._shared: dict[str, Any] = {}

    def maker(self, kind: type, role: Role, dataset: Dataset) -> Any:
        """The maker of that kind for a role's responses to a set: all generation seeds are made by one."""
        at = kind, role, dataset.name
        if at not in self._makers:
            self._makers[at] = kind(self.plan, role, dataset)
        return self._makers[at]

    def model(self, role: Role) -> Any:
        """A role's model for evaluation, on the device and in eval mode; loaded once until `release`."""
        if role not in self._loaded:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            weights = self.weights(self.plan.model(role), role)
            self._loaded[role] = load_model(weights, teacher_dtype(self.plan.config)).to(device).eval()
        return self._loaded[role]

    def tokenizer(self, role: Role) -> Any:
        """A role's tokenizer."""
        return inputs.tokenizer(self.weights(self.plan.model(role), role))

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once until `release`."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def release(self) -> None:
        """Let go of loaded models."""
        self._loaded.clear()
        self._shared.clear()

    def weights(self, source: Source, role: Role) -> Weights:
        """Where to load a model of the graph from; an adapter lies over what its training started from."""
        own = getattr(self.plan.config.model, role)
        if isinstance(source, Given):
            if source.name == own.path:
                return supplied(own.path, Weights(own.id, own.revision) if own.id else None)
            return Weights(source.name, own.revision)
        folder = str(self.plan.store.folder(source) / "model")
        if source.stage == "base" or self.plan.config.model.lora is None:
            return Weights(folder)
        under = self._under_adapter(source)
        if isinstance(under, Node):
            ensure(self.plan.store, [under])  # a finished adapter's base may be gone
        start = self.weights(under, role)
        return Weights(start.base, start.revision, folder)

    def _under_adapter(self, source: Node) -> Source:
        """What the adapters of a training and of those before it lie over."""
        from distill.pipeline.stages.training import Training

        start: Source = source
        while isinstance(start, Node) and isinstance(start.maker, Training):
            start = start.maker.start
        return start

    def rows(self, role: Role, datasets: Sequence[Dataset]) -> list[EncodedSet]:
        """Sets as a role's tokenizer encodes them for training; what the role's training starts from is made first."""
        plan, own = self.plan, getattr(self.plan.config.model, role)
        cut = own.path is None and own.keep_layers is not None
        origin = plan.base("teacher") if cut else self.origin(role)
        if isinstance(origin, Node):
            ensure(plan.store, [origin])
        weights = self.weights(origin, "teacher" if cut else role)
        return [inputs.training_rows(plan.config, weights, dataset) for dataset in datasets]

    def teacher_rows(self) -> list[EncodedSet]:
        """Training and validation rows as the finished teacher's tokenizer encodes them."""
        plan = self.plan
        weights = self.weights(plan.teacher, "teacher")
        return [inputs.training_rows(plan.config, weights, dataset) for dataset in plan.data]

    def origin(self, role: Role) -> Source:
        """What a role's training starts from: its supplied checkpoint, or its base weights."""
        plan = self.plan
        if getattr(plan.config.model, role).path is None:
            return plan.base(role)
        return plan.teacher if role == "teacher" else plan.start

    def shape(self, role: Role) -> Shape:
        """A role's sizes, from a config file alone."""
        plan, own = self.plan, getattr(self.plan.config.model, role)
        cut = own.keep_layers if own.path is None else None
        origin = plan.base("teacher") if cut else self.origin(role)
        if isinstance(origin, Node):
            ensure(plan.store, [origin])
        return shape_of(self.weights(origin, "teacher" if cut else role), cut)
