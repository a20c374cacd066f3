"""The inputs and outputs of generation: requests and responses, and the division of requests into groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill.config.evaluation import EvalConfig
from distill.generation.known import Known

# The size of a group: about GROUP_BATCHES batches of `batch_tokens`, and at most GROUP_PREFIXES prefixes. Groups are
# small, since a stopped run loses a group as a whole, and processes divide the groups of a set among themselves.
GROUP_BATCHES, GROUP_PREFIXES = 8, 64

# Called with the number of responses that were finished since the last call.
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Request:
    """One response to write.

    Attributes:
        id: the example's id, for messages and for the order of equally long prefixes. Requests may share an id.
        prompt: token ids.
        stream: name of the random stream that the response is drawn from (see `stream_name`).
        room: limit of new tokens, 0 or more.
        beginning: the response's first tokens, which are already chosen. They are prefilled with the prompt and are
            not part of the response's tokens.
        known: the model's keys and values of all tokens of the prefix but the last, if it has read them before.
    """

    id: str
    prompt: list[int]
    stream: str
    room: int
    beginning: list[int] = field(default_factory=list)
    known: Known | None = field(default=None, compare=False, repr=False)

    @property
    def prefix(self) -> list[int]:
        """The tokens that are prefilled: the prompt, then the beginning."""
        return [*self.prompt, *self.beginning] if self.beginning else self.prompt


@dataclass(frozen=True)
class Response:
    """The response to a request.

    Attributes:
        tokens: the new tokens, without EOS and without the request's beginning.
        ended: whether EOS ended the response; otherwise it has `room` tokens.
        ties: number of tokens for which another token's score was within `decode.TIE` of the chosen one's.
    """

    tokens: list[int]
    ended: bool
    ties: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, for all requests of a call.

    Attributes:
        settings: sampling, greedy or beam search with their parameters, and `batch_tokens`. Its `max_new_tokens` is not
            used here, since every request has its own `room`.
        eos_id: the token that ends a response.
        pad_id: fills the left of shorter prefixes in a prefill, where it is masked.
        vocabulary: only the ids below it are written; None is the model's whole output layer. An output layer may be
            wider than the vocabulary, and a model that reads the text may have fewer ids.
    """

    settings: EvalConfig
    eos_id: int
    pad_id: int
    vocabulary: int | None = None


def stream_name(seed: int, set_name: str, example_id: str) -> str:
    """The name of the random stream of one response, by generation seed, set and example.

    Every stored response depends on these names, so they must not change.
    """
    return f"{seed}/{set_name}/{example_id}"


def check_requests(requests: Sequence[Request]) -> None:
    """Raise an error if a request cannot be answered.

    Raises:
        ValueError: a request has neither a prompt nor a beginning, or its room is negative.
    """
    for request in requests:
        if not request.prefix:
            raise ValueError(f"prompt {request.id} has no token")
        if request.room < 0:
            raise ValueError(f"request {request.id} has room for {request.room} tokens; it must be 0 or more")


def by_prefix(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests of each prefix. The prefixes are in the order of their first requests."""
    indices: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        indices.setdefault(tuple(request.prefix), []).append(index)
    return list(indices.values())


def groups(requests: Sequence[Request], settings: EvalConfig) -> list[list[int]]:
    """Divide requests into groups that are written one after the other, so that a stopped run loses at most one group.

    Requests with the same prefix stay together. The longest prefixes come first, so that the prefixes of a group are of
    similar length. The groups depend only on the requests and on `batch_tokens`: a run that continues after a stop
    repeats the same batches.

    Returns:
        The indices of each group's requests.
    """
    ordered = []  # by length and id, so that the groups do not depend on the order of the requests
    for same_prefix in by_prefix(requests):
        indices = sorted(same_prefix, key=lambda i: requests[i].id)
        first = requests[indices[0]]
        ordered.append((-len(first.prefix), first.id, indices))
    ordered.sort(key=lambda entry: entry[:2])
    grouped: list[list[int]] = []
    tokens = prefixes = 0
    for negative_length, _, indices in ordered:
        if not grouped or tokens >= GROUP_BATCHES * settings.batch_tokens or prefixes == GROUP_PREFIXES:
            grouped.append([])
            tokens = prefixes = 0
        grouped[-1] += indices
        tokens += -negative_length + sum(requests[i].room for i in indices)
        prefixes += 1
    return grouped
