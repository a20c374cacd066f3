"""The artifact store: what a stage made, under a name made of a hash of everything that determines it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.files import write_whole
from distill.base.memory import peak_bytes, reset_peak
from distill.base.processes import from_main_process, is_main_process, wait_for_everyone
from distill.base.provenance import commit, hardware, versions

MANIFEST = "artifact.json"
PARTIAL = ".partial"
ATTEMPTS = "attempts.json"  # when a build was begun, so that a resumed one counts the time before it was stopped
# What a build goes on from after a stop. It is removed once the artifact is in place: removed before, a stop in between
# would lose the work.
SCRATCH = ("checkpoints", "groups")

Build = Callable[[Sequence["Spec"], list[Path]], list[dict[str, Any]]]


def digest(determinants: Any) -> str:
    """A 12-digit hash of a JSON value."""
    text = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Spec:
    """What an artifact is; two are equal when their names are, which hold the hash of all the rest.

    Attributes:
        stage: what makes it.
        label: a name for people.
        determinants: everything that its content depends on, as a JSON value.
    """

    stage: str
    label: str
    determinants: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """Hash of stage and determinants."""
        return digest([self.stage, self.determinants])

    @cached_property
    def name(self) -> str:
        """`stage/label-key`."""
        return f"{self.stage}/{self.label}-{self.key}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, eq=False)
class Entry:
    """An artifact on disk.

    Attributes:
        name: `stage/label-key`.
        folder: where it lies.
        size: in bytes.
        manifest: its `artifact.json`; empty if it is unfinished.
    """

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
        self._announced: set[str] = set()

    def folder(self, spec: Spec) -> Path:
        """Where the artifact lies or will lie."""
        return self.root / spec.name

    def has(self, spec: Spec) -> bool:
        """Whether the artifact is finished."""
        return (self.folder(spec) / MANIFEST).is_file()

    def agreed(self, spec: Spec) -> bool:
        """`has`, as the main process of a distributed run sees it; all processes must ask."""
        return bool(from_main_process(self.has(spec)))

    def manifest(self, spec: Spec) -> dict[str, Any]:
        """The manifest of a finished artifact."""
        loaded: dict[str, Any] = json.loads((self.folder(spec) / MANIFEST).read_text(encoding="utf-8"))
        return loaded

    def make(
        self, spec: Spec, build: Callable[[Path], dict[str, Any]], together: bool = False, quiet: bool = False
    ) -> Path:
        """The artifact's folder; `build` fills it if it is missing. See `make_all`."""
        (folder,) = self.make_all([spec], lambda _, folders: [build(folders[0])], together, quiet)
        return folder

    def make_all(self, specs: Sequence[Spec], build: Build, together: bool = False, quiet: bool = False) -> list[Path]:
        """The artifacts' folders; `build` fills those of the missing ones together.

        Another process that makes one of them is waited for. A build that was killed finds its folders as it left
        them; one that fails with a UserError leaves nothing but what it can go on from (`SCRATCH`).

        Args:
            build: fills the folders of the missing artifacts and gives what the manifest of each shall hold.
            together: all processes of a distributed run take part in `build` (training, generation); otherwise the
                main process makes the artifacts and the others wait.
            quiet: print nothing; the caller does.
        """
        tell = (lambda text: None) if quiet else say
        folders = [self.folder(spec) for spec in specs]
        missing = [spec for spec in specs if not self.agreed(spec)]
        if not missing:
            for spec, folder in zip(specs, folders, strict=True):
                if spec.name not in self._announced:  # once, however often it is asked for
                    tell(f"{spec.stage} {spec.label}: found finished in {folder}")
                self._announced.add(spec.name)
            return folders
        with ExitStack() as locks:
            for spec in sorted(missing, key=lambda s: s.name) if is_main_process() else ():
                locks.enter_context(self._locked(spec))
            missing = [spec for spec in missing if not self.agreed(spec)]  # others may have made some meanwhile
            if missing:
                partials = [self._partial(spec) for spec in missing]
                if together:
                    self._build(missing, build, partials, tell) if is_main_process() else build(missing, partials)
                else:
                    self._build_alone(missing, build, partials, tell)
            wait_for_everyone()
        return folders

    def _build_alone(
        self, specs: Sequence[Spec], build: Build, partials: list[Path], tell: Callable[[str], None]
    ) -> None:
        """Build in the main process while the others wait; what goes wrong there is raised in all of them."""
        problems: list[str] | None = None
        if is_main_process():
            try:
                self._build(specs, build, partials, tell)
            except UserError as error:
                problems = error.problems
        if problems := from_main_process(problems):
            raise UserError(problems, shared=True)

    def _partial(self, spec: Spec) -> Path:
        folder = self.folder(spec)
        return folder.with_name(f"{PARTIAL}-{folder.name}")

    def lock(self, stage: str, key: str) -> FileLock:
        """The lock that is held while the artifact of that stage and key is made or removed."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{stage}-{key}.lock")

    @contextmanager
    def _locked(self, spec: Spec) -> Iterator[None]:
        lock = self.lock(spec.stage, spec.key)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            say(f"{spec.stage} {spec.label}: another process is making it; waiting")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _build(self, specs: Sequence[Spec], build: Build, partials: list[Path], tell: Callable[[str], None]) -> None:
        earlier, started = [], time.time()
        for spec, partial in zip(specs, partials, strict=True):
            partial.mkdir(parents=True, exist_ok=True)
            tell(f"{spec.stage} {spec.label}: making it")
            earlier.append(_earlier_attempts(partial))
            attempts = [*earlier[-1], {"started": started, "commit": commit()}]
            write_whole(partial / ATTEMPTS, json.dumps(attempts))
        counted = reset_peak()
        try:
            entries = build(specs, partials)
        except UserError:
            for partial in partials:
                if not any(partial.glob("checkpoints/checkpoint-*")):
                    shutil.rmtree(partial)
            raise
        seconds, peak = (time.time() - started) / len(specs), peak_bytes() if counted else None
        self._announced.update(spec.name for spec in specs)
        for spec, partial, attempts, more in zip(specs, partials, earlier, entries, strict=True):
            self._finish(spec, partial, attempts, seconds, {"peak_bytes": peak, **more})
            tell(f"{spec.stage} {spec.label}: done in {seconds:.0f} s, in {self.folder(spec)}")

    def _finish(
        self, spec: Spec, partial: Path, earlier: list[dict[str, Any]], seconds: float, more: dict[str, Any]
    ) -> None:
        """Write the manifest, rename the folder into place, and remove what a stopped build would have gone on from."""
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
            **more,
        }
        write_whole(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        partial.replace(self.folder(spec))
        for name in (*SCRATCH, ATTEMPTS):
            remove(self.folder(spec) / name)

    def discard(self, spec: Spec, why: str) -> None:
        """Remove a finished artifact whose files are not what its manifest says, so that it is made again."""
        with self._locked(spec):
            if self.has(spec):
                say(f"{spec.stage} {spec.label}: {why}; making it again")
                (self.folder(spec) / MANIFEST).unlink()
                remove(self.folder(spec))

    def entries(self, stages: Sequence[str]) -> Iterator[Entry]:
        """All artifacts of these stages, unfinished ones included; other folders of the store are not looked at."""
        for stage in sorted(stages):
            for folder in sorted((self.root / stage).glob("*")) if (self.root / stage).is_dir() else ():
                if folder.is_dir():
                    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                    path = folder / MANIFEST
                    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                    yield Entry(f"{stage}/{folder.name}", folder, size, manifest)

    def busy(self, entry: Entry) -> bool:
        """Whether a process is making the entry now."""
        stage, key = entry.name.split("/")[0], entry.name.rsplit("-", 1)[-1]
        try:
            with self.lock(stage, key).acquire(timeout=0):
                return False
        except Timeout:
            return True


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there; of a link the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


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
    files = [file for file in sorted(folder.rglob("*.safetensors")) if not set(SCRATCH) & set(file.parts)]
    if not files:
        return None
    content = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            content.update(hashlib.file_digest(handle, "sha256").digest())
    return content.hexdigest()[:12]
