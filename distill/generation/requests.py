"""What is asked of generation and what comes back: requests, responses, and the cut of requests into groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill.config.evaluation import EvalConfig

# The size of a group: about so many batches of `batch_tokens`, and at most so many prefixes. A group is lost as a whole
# when a run is stopped, and several processes share a set group by group, so it must not be too large.
GROUP_BATCHES, GROUP_PREFIXES = 8, 64

# Called with the number of responses that were finished since the last call.
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Request:
    """One response to write.

    Attributes:
        id: the example's, for messages and for the order of equally long prefixes. Several requests may share one.
        prompt: token ids.
        stream: name of the random stream that the response is drawn from (see `stream_name`).
        room: the most tokens that may still be written, 0 or more.
        beginning: the response's first tokens, which are already chosen. They are read together with the prompt and
            are not part of the tokens that come back.
    """

    id: str
    prompt: list[int]
    stream: str
    room: int
    beginning: list[int] = field(default_factory=list)

    @property
    def prefix(self) -> list[int]:
        """The tokens that are read before the first one is chosen: the prompt, then the beginning."""
        return [*self.prompt, *self.beginning] if self.beginning else self.prompt


@dataclass(frozen=True)
class Response:
    """What was written for a request.

    Attributes:
        tokens: the new tokens, without EOS and without the request's beginning.
        ended: whether EOS ended the response; otherwise its room was used up.
        ties: how many of its tokens were chosen over another that scored the same within `decode.TIE`.
    """

    tokens: list[int]
    ended: bool
    ties: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, for all requests of a call.

    Attributes:
        settings: sampling, greedy or beam search with their parameters, and `batch_tokens`. Its `max_new_tokens` is not
            read here: every request has its own `room`.
        eos_id: the token that ends a response.
        pad_id: fills the left of shorter prefixes in a prefill; attention never reads it.
    """

    settings: EvalConfig
    eos_id: int
    pad_id: int


def stream_name(seed: int, set_name: str, example_id: str) -> str:
    """The name of the random stream of one response, by generation seed, set and example.

    Every kept text depends on these names, so they must not change.
    """
    return f"{seed}/{set_name}/{example_id}"


def check_requests(requests: Sequence[Request]) -> None:
    """Refuse requests that cannot be answered.

    Raises:
        ValueError: a request has neither a prompt nor a beginning, or its room is negative.
    """
    for request in requests:
        if not request.prefix:
            raise ValueError(f"prompt {request.id} has no token")
        if request.room < 0:
            raise ValueError(f"request {request.id} has room for {request.room} tokens; it must be 0 or more")


def by_prefix(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests of each prefix, prefixes in the order of their first request."""
    indices: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        indices.setdefault(tuple(request.prefix), []).append(index)
    return list(indices.values())


def groups(requests: Sequence[Request], settings: EvalConfig) -> list[list[int]]:
    """Cut requests into groups that are written one after the other, so that a stop loses one group at most.

    Requests with the same prefix stay together. The longest prefixes come first, so that a group's prompts are of like
    length. The cut depends on the requests and on `batch_tokens` alone: a run that continues after a stop repeats the
    same batches.

    Returns:
        The indices of each group's requests.
    """
    ordered = []  # by length and id: the same cut whatever order the requests come in
    for same_prefix in by_prefix(requests):
        indices = sorted(same_prefix, key=lambda i: requests[i].id)
        first = requests[indices[0]]
        ordered.append((-len(first.prefix), first.id, indices))
    ordered.sort(key=lambda entry: entry[:2])
    cut: list[list[int]] = []
    tokens = prefixes = 0
    for negative_length, _, indices in ordered:
        if not cut or tokens >= GROUP_BATCHES * settings.batch_tokens or prefixes == GROUP_PREFIXES:
            cut.append([])
            tokens = prefixes = 0
        cut[-1] += indices
        tokens += -negative_length + sum(requests[i].room for i in indices)
        prefixes += 1
    return cut
