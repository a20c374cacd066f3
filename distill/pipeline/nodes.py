"""Nodes of the graph from a config to its artifacts: each knows its inputs, its maker, and what its facts are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from distill.pipeline.keys import Given
from distill.pipeline.store import Spec, Store
from distill.results.metrics import Finished, values_of
from distill.results.runs import Fact
from distill.training.estimate import Estimate


class Maker:
    """How artifacts of one kind are made.

    Attributes:
        together: whether all processes of a distributed run take part; otherwise the main process works alone.
        quiet: whether it says itself what it does.
    """

    together = False
    quiet = False

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """Fill the folders of the nodes; gives what the manifest of each shall hold."""
        raise NotImplementedError

    def verify(self, node: Node) -> None:
        """Look at a finished artifact that is about to be used; one that cannot be used is discarded."""

    def estimate(self) -> Estimate | None:
        """What making it will need, where that is worth saying before it starts."""
        return None


@dataclass(frozen=True)
class Subject:
    """What an artifact's facts are about.

    Attributes:
        dataset: the data set's name, or what stands for it.
        data: hash of the set's content.
        seed: the generation seed.
        topics: by example id, for sets whose topics are metrics.
        details: what the artifact's manifest does not tell.
        shared: artifacts that were made once for this one and others; their time counts in its cost.
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
        inputs: what it is made from, in the order in which they are made. A finished artifact needs them no more.
        maker: how it is made; nodes with one maker are made together.
        subject: what its facts are about; None where it yields none.
    """

    inputs: tuple[Node | Given, ...] = ()
    maker: Maker = field(default_factory=Maker, repr=False)
    subject: Subject | None = None


Source = Node | Given


def ensure(store: Store, nodes: Sequence[Node]) -> None:
    """Make the nodes that are missing, and before each what it is made from; all processes must ask."""
    for maker, beside in groupby(nodes, key=lambda node: node.maker):
        group = list(beside)
        for node in group:
            maker.verify(node)
        missing = [node for node in group if not store.agreed(node)]
        sources = dict.fromkeys(source for node in missing for source in node.inputs)
        for source in sources:
            if isinstance(source, Node):
                ensure(store, [source])
        store.make_all(group, maker.make, maker.together, maker.quiet)


def upcoming(store: Store, nodes: Sequence[Node]) -> list[Node]:
    """What `ensure` would make, in its order."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in order or store.agreed(node):
            return
        for source in node.inputs:
            if isinstance(source, Node):
                visit(source)
        order[node] = None

    for node in nodes:
        visit(node)
    return list(order)


def available(store: Store, source: Source) -> bool:
    """Whether a source is there without making anything; all processes must ask."""
    return isinstance(source, Given) or store.agreed(source)


def facts_of(store: Store, node: Node) -> Iterator[Fact]:
    """The facts that a finished node yields."""
    if node.subject is None:
        return
    subject, manifest = node.subject, store.manifest(node)
    shared = [store.manifest(other) for other in subject.shared if store.has(other)]
    finished = Finished(store.folder(node), manifest, subject.topics, subject.details, shared)
    for metric, (name, value, n) in values_of(finished, node.stage):
        own = metric.dataset is None or metric.dataset == subject.dataset
        dataset, data = (subject.dataset, subject.data) if own else (metric.dataset or "", "")
        yield Fact(dataset, data, name, float(value), n, manifest["commit"], subject.seed)
