"""Generation for training and evaluation: from requests to responses.

Requests with the same prefix share one prefill and one copy of its keys and values. In the batch, finished rows are
removed or give their place to waiting requests (`distill.generation.batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.generation.batch import Batch, PrefixRows, Row
from distill.generation.decode import NgramBan, RowStream
from distill.generation.reader import Mixture
from distill.generation.requests import Decoding, Progress, Request, Response, by_prefix, check_requests, groups
from distill.generation.search import beam_search


def generate(
    model: Any, requests: Sequence[Request], decoding: Decoding, progress: Progress = lambda responses: None
) -> list[Response]:
    """One response for each request, in the order of the requests.

    A response depends on the model, its prefix, its stream and its room, not on the other requests, their order or the
    batch size (in fp32, except for draws that tie within rounding). Without sampling it does not depend on the stream.

    Args:
        model: a causal language model in eval mode, or a `Mixture` of two on one device.
        requests: what to write.
        decoding: how tokens are chosen.
        progress: called with the number of responses that were finished since the last call.

    Raises:
        ValueError: a request has neither a prompt nor a beginning, or its room is negative.
    """
    check_requests(requests)
    responses: dict[int, Response] = {}
    for group in groups(requests, decoding.settings):
        written = write_group(model, [requests[i] for i in group], decoding, progress)
        responses.update(zip(group, written, strict=True))
    return [responses[i] for i in range(len(requests))]


def write_group(
    model: Any, requests: Sequence[Request], decoding: Decoding, progress: Progress = lambda responses: None
) -> list[Response]:
    """The responses of one group (see `groups`), in the order of the requests; arguments and errors as in `generate`.

    `batch_tokens` limits the columns of the KV cache: one copy of each prefix, and for each row the columns that its
    response may need, including those allocated ahead. The logits `[rows, V]` of a step need memory besides.
    """
    check_requests(requests)
    responses = {i: Response([], False) for i, request in enumerate(requests) if not request.room}
    if responses:
        progress(len(responses))
    prefixes = _prefixes(model, requests, decoding)
    if decoding.settings.num_beams > 1 and not decoding.settings.do_sample:
        beam_search(model, prefixes, decoding, progress)
    elif prefixes:
        Batch(model, prefixes, decoding, progress).run()
    for row in (row for prefix in prefixes for row in prefix.rows):
        for i in row.requests:
            responses[i] = Response(list(row.tokens), row.ended, row.ties)
    return [responses[i] for i in range(len(requests))]


def _prefixes(model: Any, requests: Sequence[Request], decoding: Decoding) -> list[PrefixRows]:
    """The prefixes of a group with their rows: a row per request, or, without sampling, a row per prefix and room."""
    settings = decoding.settings
    device = (model.student if isinstance(model, Mixture) else model).device
    prefixes: list[PrefixRows] = []
    for indices in by_prefix(requests):
        tokens = requests[indices[0]].prefix
        rows: dict[int, Row] = {}
        for i in indices:
            request = requests[i]
            key = i if settings.do_sample else request.room
            if key in rows:
                rows[key].requests.append(i)
            elif request.room:
                ban = NgramBan(settings.no_repeat_ngram_size, tokens) if settings.no_repeat_ngram_size else None
                stream = RowStream(request.stream, device)
                rows[key] = Row([i], len(prefixes), len(tokens), request.room, stream, ban)
        if rows:
            prefixes.append(PrefixRows(tokens, list(rows.values()), requests[indices[0]].known))
    return prefixes
