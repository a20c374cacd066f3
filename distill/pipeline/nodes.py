"""The nodes of a config's graph of artifacts: each has its inputs, its maker and the subject of its facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from distill.pipeline.keys import ExternalWeights
from distill.pipeline.store import Spec, Store
from distill.results.metrics import Finished, values_of
from distill.results.runs import Fact
from distill.training.estimate import Estimate


class Maker:
    """Makes the artifacts of one kind.

    Attributes:
        together: whether all processes of a distributed run call `make`. If not, only the main process does, and the
            others wait.
        quiet: whether the store prints no messages about the artifacts, because the maker prints its own.
    """

    together = False
    quiet = False

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """Write the files of the nodes' artifacts into `folders`.

        Returns:
            Entries for each artifact's manifest.
        """
        raise NotImplementedError

    def verify(self, node: Node) -> None:
        """Check a finished artifact before it is used, and discard it if it is unusable."""

    def estimate(self) -> Estimate | None:
        """The memory, disk space and time that `make` needs; None for stages that are not estimated."""
        return None


@dataclass(frozen=True)
class Subject:
    """What an artifact's facts are about.

    Attributes:
        dataset: the data set's name, or `training` or `benchmarks` for facts that are not about a data set.
        data: hash of the set's content; "" without a data set.
        seed: the generation seed; None for facts that depend on none.
        topics: each example's topic by example id, "" where topics are not measured separately.
        details: further parts of metric names that the artifact's manifest does not have; of a comparison with a
            teacher that is not part of the run, the teacher's key as `teacher`.
        shared: artifacts that were made once for this artifact and others. Their time is part of its cost.
    """

    dataset: str = ""
    data: str = ""
    seed: int | None = None
    topics: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Node(Spec):
    """An artifact of the graph.

    Attributes:
        inputs: the nodes and weights that it is made from, in the order in which they are made. Once it is finished, it
            can be used without them.
        maker: makes it. Consecutive nodes with the same maker are made in one call.
        subject: what its facts are about; None for an artifact without facts.
    """

    inputs: tuple[Node | ExternalWeights, ...] = ()
    maker: Maker = field(default_factory=Maker, repr=False)
    subject: Subject | None = None


Source = Node | ExternalWeights


def ensure(store: Store, nodes: Sequence[Node]) -> None:
    """Make the missing nodes. Before each, its missing inputs are made.

    All processes of a distributed run must call this.
    """
    for maker, group in groupby(nodes, key=lambda node: node.maker):
        nodes_of_maker = list(group)
        for node in nodes_of_maker:
            maker.verify(node)
        missing = [node for node in nodes_of_maker if not store.main_process_has(node)]
        sources = dict.fromkeys(source for node in missing for source in node.inputs)
        for source in sources:
            if isinstance(source, Node):
                ensure(store, [source])
        store.make_all(nodes_of_maker, maker.make, maker.together, maker.quiet)


def upcoming(store: Store, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that `ensure` would make, in the order in which it makes them."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in order or store.main_process_has(node):
            return
        for source in node.inputs:
            if isinstance(source, Node):
                visit(source)
        order[node] = None

    for node in nodes:
        visit(node)
    return list(order)


def available(store: Store, source: Source) -> bool:
    """Whether a source can be used without making it first. All processes of a distributed run must call this."""
    return isinstance(source, ExternalWeights) or store.main_process_has(source)


def facts_of(store: Store, node: Node) -> Iterator[Fact]:
    """The facts of a finished node; none for a node without a subject."""
    if node.subject is None:
        return
    subject, manifest = node.subject, store.manifest(node)
    shared = [store.manifest(other) for other in subject.shared if store.has(other)]
    finished = Finished(store.folder(node), manifest, subject.topics, subject.details, shared)
    for metric, (name, value, n) in values_of(finished, node.stage):
        about_set = metric.dataset is None or metric.dataset == subject.dataset
        dataset, data = (subject.dataset, subject.data) if about_set else (metric.dataset or "", "")
        yield Fact(dataset, data, name, float(value), n, manifest["commit"], subject.seed)
