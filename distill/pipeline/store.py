"""The artifact store: what a stage made, under a name made of a hash of everything that determines it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.memory import peak_bytes, reset_peak
from distill.base.processes import is_main_process, world_size
from distill.base.provenance import commit, hardware, versions

MANIFEST = "artifact.json"
PARTIAL = ".partial"
ATTEMPTS = "attempts.json"  # when a build was begun, so that a resumed one counts the time before it was stopped


@cache
def _join_processes() -> None:
    """Join the other processes of a distributed run, with patience for a stage that only the first one makes."""
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))


def _earlier_attempts(partial: Path) -> list[dict[str, Any]]:
    """Attempts that were stopped, each with the seconds until its last sign of life: the newest file."""
    path = partial / ATTEMPTS
    if not path.is_file():
        return []
    attempts: list[dict[str, Any]] = json.loads(path.read_text())
    last = max(f.stat().st_mtime for f in partial.rglob("*"))
    attempts[-1].setdefault("seconds", max(0.0, last - attempts[-1]["started"]))
    return attempts


def _weights_hash(folder: Path) -> str | None:
    """Hash of an artifact's weights, if it has any: another machine makes other ones from the same determinants."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        return None
    content = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            content.update(hashlib.file_digest(handle, "sha256").digest())
    return content.hexdigest()[:12]


def digest(determinants: Any) -> str:
    """A 12-digit hash of a JSON value."""
    text = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Spec:
    """What an artifact is: its stage, a name for people, and everything that determines its content.

    Two are equal when their names are, which hold the hash of all the rest.
    """

    stage: str
    label: str
    determinants: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of stage and determinants."""
        return digest([self.stage, self.determinants])

    @property
    def name(self) -> str:
        """`stage/label-key`."""
        return f"{self.stage}/{self.label}-{self.key}"

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Entry:
    """An artifact on disk, as `list` shows it."""

    name: str
    folder: Path
    size: int
    manifest: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it was completed."""
        return bool(self.manifest)


class Store:
    """Artifacts under one folder. Finished ones are renamed into place, and are locked while they are made."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._found: set[str] = set()

    def folder(self, spec: Spec) -> Path:
        """Where the artifact lies or will lie."""
        return self.root / spec.name

    def has(self, spec: Spec) -> bool:
        """Whether the artifact is finished."""
        return (self.folder(spec) / MANIFEST).is_file()

    def make(
        self, spec: Spec, build: Callable[[Path], dict[str, Any]], together: bool = False, quiet: bool = False
    ) -> Path:
        """The artifact's folder; `build` fills it if it is missing. See `make_all`."""
        (folder,) = self.make_all([spec], lambda folders: [build(folders[0])], together, quiet)
        return folder

    def make_all(
        self,
        specs: Sequence[Spec],
        build: Callable[[list[Path]], list[dict[str, Any]]],
        together: bool = False,
        quiet: bool = False,
    ) -> list[Path]:
        """The artifacts' folders; `build` fills those of all together, if one is missing.

        Another process that makes one of them is waited for. A build that was killed finds its folders as it left
        them; one that fails with a UserError leaves nothing but what it can go on from (`checkpoints`).

        Args:
            build: fills the folders and gives what the manifest of each shall tell.
            together: all processes of a distributed run take part in `build` (training, generation); otherwise the
                first makes the artifacts and the others wait.
            quiet: print nothing; the caller does.
        """
        tell = (lambda text: None) if quiet else say
        folders = [self.folder(spec) for spec in specs]
        if self._all_agreed(specs):
            for spec, folder in zip(specs, folders, strict=True):
                if spec.name not in self._found:  # said once, however often it is asked for
                    tell(f"{spec.stage} {spec.label}: found finished in {folder}")
                self._found.add(spec.name)
            return folders
        partials = [folder.with_name(f"{PARTIAL}-{folder.name}") for folder in folders]
        with ExitStack() as locks:
            for spec in sorted(specs, key=lambda s: s.name) if is_main_process() else ():
                locks.enter_context(self._locked(spec))
            if not self._all_agreed(specs):  # another process may have made them while this one waited
                if is_main_process():
                    self._build(specs, build, partials, tell)
                elif together:
                    build(partials)
            self._all_agreed(specs)  # the others wait here for the first
        return folders

    def _all_agreed(self, specs: Sequence[Spec]) -> bool:
        return all([self.agreed(spec) for spec in specs])  # every process asks for every one

    def agreed(self, spec: Spec) -> bool:
        """`has`, as the first process of a distributed run sees it; all processes must ask."""
        if world_size() == 1:
            return self.has(spec)
        from accelerate.utils import broadcast_object_list

        _join_processes()
        answer = [self.has(spec)]
        broadcast_object_list(answer, from_process=0)
        return answer[0]

    @contextmanager
    def _locked(self, spec: Spec) -> Iterator[None]:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{spec.stage}-{spec.key}.lock")
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            say(f"{spec.stage} {spec.label}: another process is making it; waiting")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _build(
        self,
        specs: Sequence[Spec],
        build: Callable[[list[Path]], list[dict[str, Any]]],
        partials: list[Path],
        tell: Callable[[str], None],
    ) -> None:
        earlier, started = [], time.time()
        for spec, partial in zip(specs, partials, strict=True):
            partial.mkdir(parents=True, exist_ok=True)
            tell(f"{spec.stage} {spec.label}: making it")
            earlier.append(_earlier_attempts(partial))
            (partial / ATTEMPTS).write_text(json.dumps([*earlier[-1], {"started": started, "commit": commit()}]))
        counted = reset_peak()
        try:
            told = build(partials)
        except UserError:
            for partial in partials:
                if not any(partial.glob("checkpoints/checkpoint-*")):
                    shutil.rmtree(partial)
            raise
        seconds, peak = (time.time() - started) / len(specs), peak_bytes() if counted else None
        for spec, partial, attempts, more in zip(specs, partials, earlier, told, strict=True):
            self._finish(spec, partial, attempts, seconds, {"peak_bytes": peak, **more})
            tell(f"{spec.stage} {spec.label}: done in {seconds:.0f} s, in {self.folder(spec)}")

    def _finish(
        self, spec: Spec, partial: Path, earlier: list[dict[str, Any]], seconds: float, told: dict[str, Any]
    ) -> None:
        """Write the manifest and rename the folder into place."""
        manifest = {
            "stage": spec.stage,
            "label": spec.label,
            "key": spec.key,
            "determinants": spec.determinants,
            "seconds": round(seconds + sum(a["seconds"] for a in earlier), 1),
            "commit": ", ".join(dict.fromkeys([*(a["commit"] for a in earlier), commit()])),
            "versions": versions(),
            "hardware": hardware(),
            "weights": _weights_hash(partial),
            **told,
        }
        (partial / ATTEMPTS).unlink()
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.folder(spec).exists():  # one of several that was finished before
            shutil.rmtree(self.folder(spec))
        partial.replace(self.folder(spec))

    def discard(self, spec: Spec, why: str) -> None:
        """Remove a finished artifact whose files are not what its manifest says, so that it is made again."""
        with self._locked(spec):
            if self.has(spec):
                say(f"{spec.stage} {spec.label}: {why}; making it again")
                (self.folder(spec) / MANIFEST).unlink()
                shutil.rmtree(self.folder(spec))

    def manifest(self, spec: Spec) -> dict[str, Any]:
        """The manifest of a finished artifact."""
        loaded: dict[str, Any] = json.loads((self.folder(spec) / MANIFEST).read_text(encoding="utf-8"))
        return loaded

    def entries(self) -> Iterator[Entry]:
        """All artifacts, unfinished ones included."""
        for stage in sorted(p for p in self.root.glob("*") if p.is_dir() and p.name not in ("locks", "logs")):
            for folder in sorted(p for p in stage.iterdir() if p.is_dir()):
                size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                path = folder / MANIFEST
                manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                yield Entry(f"{stage.name}/{folder.name}", folder, size, manifest)

    def busy(self, entry: Entry) -> bool:
        """Whether a process is making the entry now."""
        stage, key = entry.name.split("/")[0], entry.name.rsplit("-", 1)[-1]
        lock = FileLock(self.root / "locks" / f"{stage}-{key}.lock")
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
