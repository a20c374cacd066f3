"""The artifact store: the outputs of stages in folders whose names have a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.files import follow_umask, read_json, write_whole
from distill.base.memory import peak_bytes, reset_peak
from distill.base.processes import from_main_process, is_main_process, wait_for_everyone
from distill.base.provenance import commit, hardware, versions

MANIFEST = "artifact.json"
FILES = "files"  # in a manifest: the sizes of the artifact's files, by which damage is noticed
PARTIAL = ".partial"
ATTEMPTS = "attempts.json"  # start times of a build, so that the time of a resumed build includes the stopped attempts
# What a stopped build resumes from. It is removed only after the finished folder has been renamed into place. If it
# were removed before, a stop in between would lose the work.
SCRATCH = ("checkpoints", "groups")

# Fills the folders of the artifacts and returns entries for each manifest.
Build = Callable[[Sequence["Spec"], list[Path]], list[dict[str, Any]]]


def digest(determinants: Any) -> str:
    """A 12-digit hash of a JSON value."""
    text = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Spec:
    """The identity of an artifact. Two are equal if their names are, since the name has the hash of the determinants.

    Attributes:
        stage: the name of the stage that makes it.
        label: a name for people.
        determinants: everything that its content depends on, as a JSON value.
    """

    stage: str
    label: str
    determinants: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """The hash of stage and determinants."""
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
        folder: its folder.
        size: bytes of its files.
        manifest: the content of its `artifact.json`; empty if it is unfinished.
    """

    name: str
    folder: Path
    size: int
    manifest: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the artifact was completed."""
        return bool(self.manifest)


class Store:
    """The artifacts under one folder.

    An artifact is locked while it is made in a temporary folder, which is renamed once it is finished.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._announced: set[str] = set()
        self._manifests: dict[tuple[str, int, int], dict[str, Any]] = {}  # by path, time and size

    def folder(self, spec: Spec) -> Path:
        """The artifact's folder, which exists once it is finished."""
        return self.root / spec.name

    def has(self, spec: Spec) -> bool:
        """Whether the artifact is finished. One whose manifest is damaged is not: it is made again."""
        return bool(self._manifest_in(self.folder(spec)))

    def _manifest_in(self, folder: Path) -> dict[str, Any]:
        """The manifest of an artifact's folder; empty if it is missing or damaged, which is said once."""
        path = folder / MANIFEST
        try:
            status = path.stat()
        except OSError:
            return {}
        key = str(path), status.st_mtime_ns, status.st_size
        if key not in self._manifests:
            try:
                content = read_json(path)
                if not isinstance(content, dict):
                    raise UserError(f"{path}: damaged, no JSON object")
                if (wrong := _of_other_size(folder, content.get(FILES) or {})) is not None:
                    raise UserError(wrong)
            except UserError as error:
                say(f"{error.problems[0].partition(';')[0]}; the artifact counts as unfinished")
                content = {}
            self._manifests[key] = content
        return self._manifests[key]

    def main_process_has(self, spec: Spec) -> bool:
        """The main process's `has`, so that all processes of a distributed run act alike. All must call it."""
        return bool(from_main_process(self.has(spec)))

    def manifest(self, spec: Spec) -> dict[str, Any]:
        """The manifest of a finished artifact."""
        return dict(self._manifest_in(self.folder(spec)))

    def make(
        self, spec: Spec, build: Callable[[Path], dict[str, Any]], together: bool = False, quiet: bool = False
    ) -> Path:
        """The folder of one artifact, made by `build` if it is missing; see `make_all`."""
        (folder,) = self.make_all([spec], lambda _, folders: [build(folders[0])], together, quiet)
        return folder

    def make_all(self, specs: Sequence[Spec], build: Build, together: bool = False, quiet: bool = False) -> list[Path]:
        """The folders of the artifacts. The missing ones are made in one call of `build`.

        If another process is making one of them, this waits until it has finished. A build that resumes after it was
        killed finds its folders as they were. The folder of a build that raises UserError is removed, unless it has a
        checkpoint to resume from.

        Args:
            build: fills the folders of the missing artifacts and returns entries for each manifest.
            together: whether all processes of a distributed run call `build` (training, generation). If not, the main
                process does and the others wait.
            quiet: whether no progress is printed, because the caller prints it.
        """
        report = (lambda text: None) if quiet else say
        folders = [self.folder(spec) for spec in specs]
        missing = [spec for spec in specs if not self.main_process_has(spec)]
        if not missing:
            for spec, folder in zip(specs, folders, strict=True):
                if is_main_process():
                    _remove_scratch(folder)  # a build may have been killed after its folder was renamed
                if spec.name not in self._announced:  # print it once per process
                    report(f"{spec.stage} {spec.label}: found finished in {folder}")
                self._announced.add(spec.name)
            return folders
        with ExitStack() as locks:
            for spec in sorted(missing, key=lambda s: s.name) if is_main_process() else ():
                locks.enter_context(self._locked(spec))
            # Another process may have made some while this one waited for the locks.
            missing = [spec for spec in missing if not self.main_process_has(spec)]
            if missing:
                partials = [self._partial(spec) for spec in missing]
                if together:
                    self._build(missing, build, partials, report) if is_main_process() else build(missing, partials)
                else:
                    self._build_in_main_process(missing, build, partials, report)
            wait_for_everyone()
        return folders

    def _build_in_main_process(
        self, specs: Sequence[Spec], build: Build, partials: list[Path], report: Callable[[str], None]
    ) -> None:
        """Build in the main process while the others wait. Its UserError is raised in all processes."""
        problems: list[str] | None = None
        if is_main_process():
            try:
                self._build(specs, build, partials, report)
            except UserError as error:
                problems = error.problems
        if problems := from_main_process(problems):
            raise UserError(problems, shared=True)

    def _partial(self, spec: Spec) -> Path:
        """The folder in which an unfinished artifact is made."""
        folder = self.folder(spec)
        return folder.with_name(f"{PARTIAL}-{folder.name}")

    def lock(self, stage: str, key: str) -> FileLock:
        """The lock that a process holds while it makes or removes the artifact of this stage and key."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{stage}-{key}.lock")

    @contextmanager
    def _locked(self, spec: Spec) -> Iterator[None]:
        lock = self.lock(spec.stage, spec.key)
        try:
            lock.acquire(timeout=0.1)
        except Timeout:
            say(f"{spec.stage} {spec.label}: another process is making it; waiting for it to finish")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _build(self, specs: Sequence[Spec], build: Build, partials: list[Path], report: Callable[[str], None]) -> None:
        stopped_attempts, started = [], time.time()
        for spec, partial in zip(specs, partials, strict=True):
            partial.mkdir(parents=True, exist_ok=True)
            report(f"{spec.stage} {spec.label}: making it")
            stopped_attempts.append(_stopped_attempts(partial))
            attempts = [*stopped_attempts[-1], {"started": started, "commit": commit()}]
            write_whole(partial / ATTEMPTS, json.dumps(attempts))
        measures_peak = reset_peak()
        try:
            entries = build(specs, partials)
        except UserError:
            for partial in partials:
                if not any(partial.glob("checkpoints/checkpoint-*")):
                    shutil.rmtree(partial)
            raise
        seconds, peak = (time.time() - started) / len(specs), peak_bytes() if measures_peak else None
        self._announced.update(spec.name for spec in specs)
        for spec, partial, stopped, entry in zip(specs, partials, stopped_attempts, entries, strict=True):
            self._finish(spec, partial, stopped, seconds, {"peak_bytes": peak, **entry})
            report(f"{spec.stage} {spec.label}: done in {seconds:.0f} s, in {self.folder(spec)}")

    def _finish(
        self, spec: Spec, partial: Path, stopped: list[dict[str, Any]], seconds: float, entry: dict[str, Any]
    ) -> None:
        """Write the manifest, rename the folder into place, and remove what a stopped build would have resumed from.

        Args:
            stopped: the attempts that were stopped before this one.
            seconds: how long this attempt took.
            entry: the build's own keys of the manifest.
        """
        manifest = {
            "stage": spec.stage,
            "label": spec.label,
            "key": spec.key,
            "determinants": spec.determinants,
            "seconds": round(seconds + sum(a["seconds"] for a in stopped), 1),
            "commit": ", ".join(dict.fromkeys([*(a["commit"] for a in stopped), commit()])),
            "versions": versions(),
            "hardware": hardware(),
            "weights": _weights_hash(partial),
            FILES: _sizes(partial),
            **entry,
        }
        write_whole(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        follow_umask(partial)
        remove(self.folder(spec))  # what is left of an artifact whose manifest was damaged
        partial.replace(self.folder(spec))
        _remove_scratch(self.folder(spec))

    def discard(self, spec: Spec, reason: str) -> None:
        """Remove a finished artifact that cannot be used, so that it is made again. The reason is printed."""
        with self._locked(spec):
            if self.has(spec):
                say(f"{spec.stage} {spec.label}: {reason}; making it again")
                (self.folder(spec) / MANIFEST).unlink()
                remove(self.folder(spec))

    def entries(self, stages: Sequence[str]) -> Iterator[Entry]:
        """All artifacts of these stages, finished and unfinished. Other folders of the store are ignored."""
        for stage in sorted(stages):
            for folder in sorted((self.root / stage).glob("*")) if (self.root / stage).is_dir() else ():
                if folder.is_dir():
                    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                    yield Entry(f"{stage}/{folder.name}", folder, size, self._manifest_in(folder))

    def busy(self, entry: Entry) -> bool:
        """Whether a process is making the entry now."""
        stage, key = entry.name.split("/")[0], entry.name.rsplit("-", 1)[-1]
        try:
            with self.lock(stage, key).acquire(timeout=0):
                return False
        except Timeout:
            return True


def remove(path: Path) -> None:
    """Remove a file or folder if it exists. Of a symbolic link only the link is removed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _remove_scratch(folder: Path) -> None:
    """Remove what only an unfinished build needs. Another process may do the same at this moment."""
    for name in SCRATCH:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / ATTEMPTS).unlink(missing_ok=True)


def _stopped_attempts(partial: Path) -> list[dict[str, Any]]:
    """The attempts to build an artifact that were stopped, each with its duration in seconds.

    The newest file shows until when the last attempt ran.
    """
    path = partial / ATTEMPTS
    if not path.is_file():
        return []
    try:
        attempts: list[dict[str, Any]] = read_json(path)
        if not isinstance(attempts, list) or not attempts or not all("started" in attempt for attempt in attempts):
            raise UserError(f"{path}: no list of attempts")
    except (UserError, TypeError):
        say(f"{path}: it is damaged; the time of attempts that were stopped is not counted")
        return []
    last = max(f.stat().st_mtime for f in partial.rglob("*"))
    attempts[-1].setdefault("seconds", max(0.0, last - attempts[-1]["started"]))
    return attempts


def _sizes(folder: Path) -> dict[str, int]:
    """The sizes of an artifact's files by their path in it, without what only an unfinished build needs."""
    files = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): file.stat().st_size
        for name, file in files.items()
        if name.parts[0] not in (*SCRATCH, ATTEMPTS, MANIFEST)
    }


def _of_other_size(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with the first file that is missing or has another size than when it was made; None if nothing."""
    for name, size in sizes.items():
        path = folder / name
        now = path.stat().st_size if path.is_file() else None
        if now != size:
            return f"{path}: it was of {size} bytes and is {'missing' if now is None else f'of {now}'}"
    return None


def _weights_hash(folder: Path) -> str | None:
    """The hash of an artifact's weights; None if it has none.

    The key does not identify them: another machine computes other weights from the same determinants.
    """
    files = [file for file in sorted(folder.rglob("*.safetensors")) if not set(SCRATCH) & set(file.parts)]
    if not files:
        return None
    content = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            content.update(hashlib.file_digest(handle, "sha256").digest())
    return content.hexdigest()[:12]
