"""Writes the responses of a whole set for several seeds, group by group, so that a stopped run can continue.

Each seed has a folder. A finished group is a file of JSON lines in its subfolder `groups`, with a line per response.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.base.console import bar
from distill.base.files import write_whole
from distill.base.processes import is_main_process, share, wait_for_everyone, world_size
from distill.data.encode import Encoded
from distill.generation.load import WriteGroup
from distill.generation.requests import Decoding, Request, groups, stream_name

GROUPS, PLAN = "groups", "plan"


@dataclass(frozen=True)
class SeedResponse:
    """A stored response: one line of a group's file.

    Attributes:
        id: the example's id.
        seed: the generation seed.
        tokens: the new tokens, without EOS.
        ended: whether EOS ended the response.
        ties: see `distill.generation.requests.Response`.
    """

    id: str
    seed: int
    tokens: list[int]
    ended: bool
    ties: int = field(default=0, compare=False)


def write_resumably(
    write: WriteGroup,
    prompts: Sequence[Encoded],
    set_name: str,
    decoding: Decoding,
    folders: Mapping[int, Path],
    label: str,
) -> None:
    """Write one response for each prompt and seed to the seeds' folders, from where `read_responses` reads them.

    Groups that a stopped run has finished are not written again, unless that run divided the set into other groups.
    Several processes divide the groups among themselves; all of them must call this function together.

    Args:
        write: writes the responses of one group.
        prompts: the encoded prompts of the set.
        set_name: part of the name of every random stream.
        decoding: how tokens are chosen. Its `max_new_tokens` is the room of every response.
        folders: the folder of each generation seed. All seeds of a prompt are written in one batch.
        label: text of the progress bar.
    """
    room = decoding.settings.max_new_tokens
    requests = [
        Request(prompt.id, prompt.prompt, stream_name(seed, set_name, prompt.id), room)
        for prompt in prompts
        for seed in folders
    ]
    seeds = [seed for _ in prompts for seed in folders]
    grouped = groups(requests, decoding.settings)
    group_folders = {seed: folder / GROUPS for seed, folder in folders.items()}
    if is_main_process():
        first = next(iter(folders))
        ids = [[requests[i].id for i in group if seeds[i] == first] for group in grouped]
        _prepare(list(group_folders.values()), _digest([ids, list(folders), decoding.settings.batch_tokens]))
    wait_for_everyone()
    files = [[folder / f"{number:04}.jsonl" for folder in group_folders.values()] for number in range(len(grouped))]
    missing = [number for number, paths in enumerate(files) if not all(_is_there(path) for path in paths)]
    wait_for_everyone()  # no process may write a file before all processes have listed the missing groups
    with bar(len(requests), label, "row") as progress_bar:
        progress_bar.update(len(requests) - sum(len(grouped[number]) for number in missing))
        for number in share(missing):
            group = [requests[i] for i in grouped[number]]
            responses = write(group, decoding, lambda count: progress_bar.update(count * world_size()))
            group_responses = [
                SeedResponse(requests[i].id, seeds[i], response.tokens, response.ended, response.ties)
                for i, response in zip(grouped[number], responses, strict=True)
            ]
            for seed, path in zip(group_folders, files[number], strict=True):
                write_lines(path, [response for response in group_responses if response.seed == seed])
    wait_for_everyone()


def read_responses(folder: Path, prompts: Sequence[Encoded]) -> list[SeedResponse]:
    """The responses that `write_resumably` wrote to a seed's folder, in the order of the prompts."""
    order = {prompt.id: index for index, prompt in enumerate(prompts)}
    responses = []
    for path in (folder / GROUPS).glob("*.jsonl"):
        with path.open(encoding="utf-8") as lines:
            responses += [SeedResponse(**json.loads(line)) for line in lines]
    return sorted(responses, key=lambda response: order[response.id])


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write dataclasses as JSON lines. The file appears only when it is complete."""
    write_whole(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def _is_there(path: Path) -> bool:
    """Whether a group's file is there. An empty one, as a crash may leave it, is not."""
    return path.is_file() and path.stat().st_size > 0


def _prepare(folders: Sequence[Path], plan: str) -> None:
    """Create the folders. A folder with another plan is emptied first, since its files are of other groups."""
    for folder in folders:
        if not (folder / PLAN).is_file() or (folder / PLAN).read_text() != plan:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PLAN).write_text(plan)


def _digest(plan: Any) -> str:
    """A hash of a JSON value. It must not change, or continued runs would write their finished groups again."""
    text = json.dumps(plan, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
