"""What a plan has in memory while its artifacts are made: loaded models, and makers that several artifacts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from distill.data.encode import EncodedSet
from distill.data.sets import Dataset
from distill.models.load import Shape, Weights, load_model, shape_of, supplied
from distill.models.tokenizers import common_vocabulary
from distill.pipeline import inputs
from distill.pipeline.keys import ExternalWeights
from distill.pipeline.nodes import Node, Source, ensure
from distill.training.job import teacher_dtype

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role

OTHER: dict[Role, Role] = {"teacher": "student", "student": "teacher"}


class Session:
    """Loaded models and shared makers of one plan."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._makers: dict[Any, Any] = {}
        self._loaded: dict[Role, Any] = {}
        self._shared: dict[str, Any] = {}

    def maker(self, kind: type, role: Role, dataset: Dataset) -> Any:
        """The maker for a role's responses to a set. All generation seeds share it, so `ensure` makes them in one call.

        Args:
            kind: the maker's class.
        """
        key = kind, role, dataset.name
        if key not in self._makers:
            self._makers[key] = kind(self.plan, role, dataset)
        return self._makers[key]

    def model(self, role: Role) -> Any:
        """A role's model on its device and in eval mode. It stays loaded until `release`."""
        if role not in self._loaded:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            weights = self.weights(self.plan.model(role), role)
            self._loaded[role] = load_model(weights, teacher_dtype(self.plan.config)).to(device).eval()
        return self._loaded[role]

    def tokenizer(self, role: Role) -> Any:
        """The tokenizer of a role's model."""
        return inputs.tokenizer(self.weights(self.plan.model(role), role))

    def vocabulary(self, role: Role) -> int:
        """The number of ids that a role writes: those that both models of a pair have, if the other may read them."""
        tokenizers, model, other = [self.tokenizer(role)], self.plan.config.model, OTHER[role]
        supplied_pair = model.source == "hub" or model.teacher.path is not None or model.student.path is not None
        if supplied_pair and (role == "teacher" or self.plan.distils):
            origin = self.origin(other)
            if isinstance(origin, Node):
                ensure(self.plan.store, [origin])
            tokenizers.append(inputs.tokenizer(self.weights(origin, other)))
        return common_vocabulary(*tokenizers)

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make()`. It is kept under `name` until `release`."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def release(self) -> None:
        """Free the loaded models and shared objects."""
        self._loaded.clear()
        self._shared.clear()

    def weights(self, source: Source, role: Role) -> Weights:
        """Where to load a model of the graph from. An adapter's base is the weights that its training started from."""
        role_config = getattr(self.plan.config.model, role)
        if isinstance(source, ExternalWeights):
            if source.name == role_config.path:
                base = Weights(role_config.id, role_config.revision) if role_config.id else None
                return supplied(role_config.path, base)
            return Weights(source.name, role_config.revision)
        folder = str(self.plan.store.folder(source) / "model")
        if source.stage == "base" or self.plan.config.model.lora is None:
            return Weights(folder)
        start = self._start_without_adapter(source)
        if isinstance(start, Node):
            ensure(self.plan.store, [start])  # the base of a finished adapter may have been removed from the store
        base = self.weights(start, role)
        return Weights(base.base, base.revision, folder)

    def _start_without_adapter(self, source: Node) -> Source:
        """The weights that a training with adapters, or the first one of a chain of such trainings, started from."""
        from distill.pipeline.stages.training import Training

        start: Source = source
        while isinstance(start, Node) and isinstance(start.maker, Training):
            start = start.maker.start
        return start

    def rows(self, role: Role, datasets: Sequence[Dataset]) -> list[EncodedSet]:
        """Data sets, encoded for training with a role's tokenizer.

        The weights that the tokenizer is stored with are made if they are missing.
        """
        plan, role_config = self.plan, getattr(self.plan.config.model, role)
        # A pruned student has its teacher's tokenizer, so its own weights need not be made.
        pruned = role_config.path is None and role_config.keep_layers is not None
        origin = plan.base("teacher") if pruned else self.origin(role)
        if isinstance(origin, Node):
            ensure(plan.store, [origin])
        weights = self.weights(origin, "teacher" if pruned else role)
        return [inputs.training_rows(plan.config, weights, dataset) for dataset in datasets]

    def teacher_rows(self) -> list[EncodedSet]:
        """The training and validation rows, encoded with the finished teacher's tokenizer."""
        plan = self.plan
        weights = self.weights(plan.teacher, "teacher")
        return [inputs.training_rows(plan.config, weights, dataset) for dataset in plan.data]

    def origin(self, role: Role) -> Source:
        """A role's weights before any training: the supplied checkpoint if there is one, otherwise the base weights."""
        plan = self.plan
        if getattr(plan.config.model, role).path is None:
            return plan.base(role)
        return plan.teacher if role == "teacher" else plan.start

    def shape(self, role: Role) -> Shape:
        """The sizes of a role's model, read from its config file without loading weights."""
        plan, role_config = self.plan, getattr(self.plan.config.model, role)
        keep_layers = role_config.keep_layers if role_config.path is None else None
        origin = plan.base("teacher") if keep_layers else self.origin(role)
        if isinstance(origin, Node):
            ensure(plan.store, [origin])
        return shape_of(self.weights(origin, "teacher" if keep_layers else role), keep_layers)
