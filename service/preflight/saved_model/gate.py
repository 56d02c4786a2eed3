"""The model gate: reads the candidate's model, asks the candidate's TensorFlow, and says what does not fit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.model.gates.model import ModelGate, ModelSubject
from service.model.gates.report import Candidate, Finding, GateReport
from service.preflight.report import gate_report
from service.preflight.saved_model import words
from service.preflight.saved_model.check import BLIND, FAILS, Found, Needs, check
from service.preflight.saved_model.checkpoint import MAX_INDEX_BYTES, Checkpoint, differing, read_index, unmet
from service.preflight.saved_model.graph import MetaGraph
from service.preflight.saved_model.job import Jobs, asked_in_job
from service.preflight.saved_model.kinds import KerasArchive, Kind, kind_of, read_keras
from service.preflight.saved_model.reading import read_saved_model
from service.preflight.saved_model.runtime import NoAnswer, asked, read_dump
from service.preflight.saved_model.signatures import lost
from service.preflight.saved_model.wire import FileSource, Reader, Unreadable
from service.preflight.threads import in_thread
from service.ring.ports import PortError

NOTHING_NEEDED = Needs(
    holds_versions=False, producer=0, min_consumer=0, bad_consumers=[], defaults_stripped=True, functions=[],
    op_defs={}, uses=[],
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answered:
    """What a runtime said: its versions, what it lacks (the gravest first), and how many findings that are in all."""

    versions: dict[str, str]
    found: list[Found]
    found_n: int


Ask = Callable[[Needs], Awaitable[Answered]]
"""Holds needs against a runtime, wherever that is; raises NoAnswer or the ring's errors."""


@dataclass(slots=True)
class _Findings:
    """What was found so far."""

    failed: list[tuple[str, str]] = field(default_factory=list)
    """What is wrong, and what to do."""
    unseen: list[tuple[str, str]] = field(default_factory=list)
    """What could not be looked at, and what to do."""
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    good: str = ""

    def report(self) -> GateReport:
        """All of it, the gravest first. What is wrong goes before what could not be seen."""
        finding = Finding.FAILED if self.failed else Finding.COULD_NOT_LOOK if self.unseen else Finding.PASSED
        grave = [*self.failed, *self.unseen]
        sentence, to_do = grave[0] if grave else (self.good, "")
        if len(grave) > 1:
            sentence += f"; and {len(grave) - 1} more"
        lines = [one for one, _ in grave[1:]] + self.notes
        return gate_report("model", finding, sentence, to_do, lines=lines, facts=self.facts)


class ModelPreflight:
    """Looks at models below a folder.

    models : the folder in which the subjects' paths are
    jobs : the cluster's Jobs; None where runtimes are asked by interpreter or dump only
    environment : further variables for the candidate's interpreter, such as LD_LIBRARY_PATH
    """

    def __init__(self, *, models: Path, jobs: Jobs | None = None, environment: Mapping[str, str] = {}) -> None:
        self._models = models
        self._jobs = jobs
        self._environment = dict(environment)

    async def look(self, rule: ModelGate, subject: ModelSubject, of: Candidate) -> GateReport:
        """The gate's answer; what could not be read or asked is said in it. Safe to repeat and to cancel."""
        return await inspect(
            rule,
            self._models / subject.path,
            stable=self._models / subject.stable_path if subject.stable_path is not None else None,
            ask=self._asking(rule, subject, of),
            tags=subject.tags,
            within_s=subject.within_s,
        )

    def _asking(self, rule: ModelGate, subject: ModelSubject, of: Candidate) -> Ask:
        device = rule.device.value
        if subject.python is not None:
            return by_python(
                Path(subject.python),
                device=device,
                imports=subject.imports,
                within_s=subject.python_within_s,
                environment=self._environment,
            )
        if subject.dump is not None:
            return by_dump(self._models / subject.dump, device=device)
        jobs, job = self._jobs, subject.job

        async def ask(needs: Needs) -> Answered:
            if jobs is None or job is None:
                raise NoAnswer("this service has no cluster in which to run a Job", "Set the cluster, or name a python")
            whose = f"{of.service} {of.version}"
            answer = await asked_in_job(jobs, needs, job, device=device, imports=subject.imports, whose=whose)
            return Answered(answer["versions"], answer["found"], answer["found_n"])

        return ask


def by_python(
    python: Path,
    *,
    device: str,
    imports: Sequence[str] = (),
    within_s: float = 180.0,
    environment: Mapping[str, str] = {},
) -> Ask:
    """Asks an interpreter."""

    async def ask(needs: Needs) -> Answered:
        runtime = await asked(python, imports=imports, within_s=within_s, environment=environment)
        found = await in_thread(check, needs, runtime, device)
        return Answered(runtime["versions"], found, len(found))

    return ask


def by_dump(path: Path, *, device: str) -> Ask:
    """Takes what an interpreter said earlier."""

    def held(needs: Needs) -> Answered:
        runtime = read_dump(path)
        found = check(needs, runtime, device)
        return Answered(runtime["versions"], found, len(found))

    async def ask(needs: Needs) -> Answered:
        return await in_thread(held, needs)

    return ask


async def inspect(
    rule: ModelGate,
    candidate: Path,
    *,
    stable: Path | None,
    ask: Ask,
    tags: Sequence[str] = ("serve",),
    within_s: float = 240.0,
) -> GateReport:
    """Everything about one model: its files, the runtime that is to load it, the stable model's signatures.

    within_s : for reading the files; asking the runtime has a time of its own
    """
    findings = _Findings()
    stop = threading.Event()
    try:
        async with asyncio.timeout(within_s):
            read = await in_thread(_read, rule, candidate, stable, tuple(tags), findings, stop)
    except TimeoutError:
        # The thread goes on until it sees this, and its findings are nobody's any more.
        stop.set()
        late = _Findings()
        late.unseen.append(
            (f"reading the model {candidate.name} took longer than {within_s:g} s", "Look at the disk; raise within_s")
        )
        return late.report()
    except asyncio.CancelledError:
        stop.set()
        raise
    if read is None:
        return findings.report()
    try:
        answered = await ask(read.needs)
    except NoAnswer as error:
        findings.unseen.append((str(error), error.to_do))
    except PortError as error:
        findings.unseen.append((f"asking the candidate's TensorFlow failed: {error}", "Look at the cluster's API"))
    else:
        _judge_runtime(read, answered, findings)
    return findings.report()


@dataclass(frozen=True, slots=True)
class _Read:
    """What a model's files say, as far as the runtime is asked about it."""

    needs: Needs
    keras: KerasArchive | None = None


def _read(
    rule: ModelGate,
    path: Path,
    stable: Path | None,
    tags: tuple[str, ...],
    findings: _Findings,
    stop: threading.Event,
) -> _Read | None:
    """Look at the files; None where there is nothing to ask a runtime."""
    try:
        kind = kind_of(path)
        findings.facts["model"] = kind.value
        match kind:
            case Kind.SAVED_MODEL | Kind.HUB_V1:
                if kind is Kind.HUB_V1:
                    findings.notes.append("a TF1 Hub module: hub.load takes it; a server only with a graph of its tags")
                return _read_saved_model(rule, path, stable, tags, findings, stop)
            case Kind.KERAS:
                return _Read(NOTHING_NEEDED, read_keras(path, stop, data=rule.data))
            case Kind.CHECKPOINT:
                _read_checkpoint(rule, path, stable, findings, stop)
            case Kind.VERSIONS:
                findings.unseen.append(
                    (
                        f"{path.name} is a folder of versions and no model",
                        f"Name one of them; in a target as {path.name}/${{canary_version}}",
                    )
                )
            case Kind.HDF5 | Kind.TFLITE | Kind.CHUNKED | Kind.TEXT:
                findings.unseen.append(
                    (
                        f"{path.name} is a {kind.value}: this gate does not read it, and TensorFlow Serving serves none"
                        if kind is not Kind.CHUNKED
                        else f"{path.name} is a {kind.value}, which this gate does not read",
                        "Export the model as a SavedModel (Keras 3: model.export), with variables outside of the graph",
                    )
                )
    except Unreadable as error:
        findings.unseen.append(
            (
                f"reading the candidate's model failed: {error}",
                "Look whether the path is right, and the model copied whole",
            )
        )
    return None


def _read_saved_model(
    rule: ModelGate,
    path: Path,
    stable: Path | None,
    tags: tuple[str, ...],
    findings: _Findings,
    stop: threading.Event,
) -> _Read | None:
    graphs = _graphs(path)
    graph = _tagged(graphs, tags)
    if graph is None:
        has = "; ".join("{" + ", ".join(sorted(one.tags)) + "}" for one in graphs)
        findings.failed.append(
            (
                f"{path.name} has no graph with the tags {{{', '.join(tags)}}}; it has: {has}",
                "Export the model with these tags, or name the tags that your server loads",
            )
        )
        return None
    findings.facts["written by"] = f"TensorFlow {graph.tensorflow_version or 'of an unknown version'}"
    callable_names = sorted(key for key in graph.signatures if not key.startswith("__"))
    findings.facts["signatures"] = ", ".join(callable_names) or "none"
    _look_at_variables(rule, path / "variables" / "variables", graph, findings, stop)
    if rule.signatures:
        _compare_signatures(graph, stable, tags, findings)
    needs = graph.needs(entry=rule.entry, device=rule.device.value)
    findings.facts["ops"] = f"{len({one['op'] for one in needs['uses']})} in {len(needs['uses'])} different uses"
    return _Read(needs)


def _graphs(path: Path) -> list[MetaGraph]:
    with FileSource(path / "saved_model.pb", name=f"{path.name}/saved_model.pb") as source:
        return read_saved_model(Reader(source))


def _tagged(graphs: Sequence[MetaGraph], tags: Sequence[str]) -> MetaGraph | None:
    return next((one for one in graphs if one.tags == frozenset(tags)), None)


def _compare_signatures(graph: MetaGraph, stable: Path | None, tags: tuple[str, ...], findings: _Findings) -> None:
    if stable is None:
        findings.notes.append("signatures were not compared: no stable model is named")
        return
    to_do = "Look at the stable model's path and files"
    try:
        old = _tagged(_graphs(stable), tags)
    except Unreadable as error:
        findings.unseen.append((f"reading the stable model's signatures failed: {error}", to_do))
        return
    if old is None:
        findings.unseen.append((f"the stable model {stable.name} has no graph with the same tags", to_do))
        return
    for line in lost(old.signatures, graph.signatures):
        findings.failed.append((line, "Keep stable's signatures beside the new ones until no client calls them"))


def _look_at_variables(
    rule: ModelGate, prefix: Path, graph: MetaGraph, findings: _Findings, stop: threading.Event
) -> None:
    restored = graph.restored(entry=rule.entry, device=rule.device.value)
    index = prefix.with_name(prefix.name + ".index")
    if not index.exists():
        if restored:
            findings.failed.append(
                (f"the graph restores {len(restored):,} tensors and {index.name} is not there", "Copy the model whole")
            )
        return
    checkpoint = _checkpoint(prefix)
    if not _data_is_whole(rule, checkpoint, findings, stop):
        # What names the variables lies in the data, too.
        return
    for line in unmet(graph, restored, checkpoint):
        findings.failed.append((line, "Save variables and graph together, from the same code"))


def _checkpoint(prefix: Path) -> Checkpoint:
    index = prefix.with_name(prefix.name + ".index")
    with FileSource(index, limit_bytes=MAX_INDEX_BYTES) as source:
        return Checkpoint(prefix, read_index(source))


def _data_is_whole(rule: ModelGate, checkpoint: Checkpoint, findings: _Findings, stop: threading.Event) -> bool:
    findings.facts["variables"] = f"{len(checkpoint.index.tensors):,} tensors in {checkpoint.index.shards_n} shards"
    misplaced = checkpoint.misplaced()
    damaged = checkpoint.damaged(stop) if rule.data and not misplaced else []
    for line in misplaced + damaged:
        findings.failed.append((line, "Copy the checkpoint anew; it is damaged or not whole"))
    if not rule.data:
        findings.notes.append("checksums of the variables' data were not looked at (data: false)")
    return not (misplaced or damaged)


def _read_checkpoint(
    rule: ModelGate, prefix: Path, stable: Path | None, findings: _Findings, stop: threading.Event
) -> None:
    checkpoint = _checkpoint(prefix)
    _data_is_whole(rule, checkpoint, findings, stop)
    if stable is None:
        findings.unseen.append(
            (
                f"{prefix.name} is whole, and nothing says which variables the code restores",
                "Name stable's checkpoint to compare with, or export a SavedModel",
            )
        )
        return
    try:
        old = _checkpoint(stable)
    except Unreadable as error:
        findings.unseen.append((f"reading stable's checkpoint failed: {error}", "Look at its path and files"))
        return
    for line in differing(old.index, checkpoint.index):
        findings.failed.append((line, "Save with the code that is to restore it, or change that code with it"))
    findings.good = f"{prefix.name} holds the same variables as stable's, in the same types and shapes"


def _judge_runtime(read: _Read, answered: Answered, findings: _Findings) -> None:
    findings.facts.update(answered.versions)
    name = f"TensorFlow {answered.versions.get('TensorFlow', 'of the candidate')}"
    if read.keras is not None:
        _judge_keras(read.keras, answered.versions, findings)
        return
    fails = [one for one in answered.found if one["code"] in FAILS]
    for one in fails:
        findings.failed.append((f"{name}: {words.line(one)}", words.to_do(one)))
    for one in answered.found:
        if one["code"] in BLIND:
            findings.unseen.append((words.line(one), words.to_do(one)))
        elif one["code"] not in FAILS:
            findings.notes.append(words.line(one))
    if answered.found_n and not answered.found:
        findings.unseen.append(
            (
                f"{name} answers that there are {answered.found_n:,} findings and names none",
                "Ask it by `python` or `dump`",
            )
        )
    elif answered.found_n > len(answered.found):
        findings.notes.append(f"and {answered.found_n - len(answered.found)} findings that the answer had no room for")
    findings.good = f"{name} has every op and kernel that the model uses"


def _judge_keras(archive: KerasArchive, versions: Mapping[str, str], findings: _Findings) -> None:
    """Whether the candidate's Keras reads the file at all: files of Keras 3 and of Keras 2 are of different kinds."""
    here = versions.get("Keras", "")
    findings.facts["written by"] = f"Keras {archive.keras_version}"
    if archive.lambdas:
        findings.failed.append(
            (
                f"layers carry code of their own ({', '.join(archive.lambdas)}), which Keras refuses to load",
                "Replace Lambda layers by registered ones",
            )
        )
    if archive.foreign:
        findings.unseen.append(
            (
                f"the file names classes that are not of Keras ({', '.join(archive.foreign)}), and whether the "
                "server's code registers them is not known",
                "Export a SavedModel, which holds what they compute",
            )
        )
    if not here:
        findings.unseen.append(("the candidate's image does not say which Keras it has", "Install Keras there"))
    elif _parts(here)[:1] < _parts(archive.keras_version)[:1]:
        findings.failed.append(
            (
                f"a .keras file of Keras {archive.keras_version} is not supported by the candidate's Keras {here}",
                "Export a SavedModel, which both load (Keras 3: model.export)",
            )
        )
    elif _parts(here)[:1] != _parts(archive.keras_version)[:1] or _parts(here) < _parts(archive.keras_version):
        # Seen: Keras 2.12 and Keras 3 read some Sequential models of Keras 2.13, and no functional ones.
        findings.unseen.append(
            (
                f"whether a .keras file of Keras {archive.keras_version} loads in the candidate's Keras {here} depends "
                f"on its layers",
                f"Save it with Keras {here}, or export a SavedModel",
            )
        )
    findings.notes.append("TensorFlow Serving serves no .keras files")
    findings.good = f"a .keras file of Keras {archive.keras_version} is supported by the candidate's Keras {here}"


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2] if part.isdecimal() and len(part) < 9]
