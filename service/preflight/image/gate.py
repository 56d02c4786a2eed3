"""The image gate: reads both images' manifests and says what changed and what that is known to bring."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from string import Template

from service.model.gates.image import ImageGate, ImageSubject
from service.model.gates.report import Candidate, Finding, GateReport
from service.preflight.image.credentials import Credentials
from service.preflight.image.difference import Difference, compare
from service.preflight.image.identity import Identity, from_name, identify
from service.preflight.image.manifest import NoSuchPlatform
from service.preflight.image.reference import ImageReference
from service.preflight.image.registry import Registry
from service.preflight.outside import Outside, readable
from service.ring.ports import PortError

LINE_CHARACTERS_N = 480
FACT_CHARACTERS_N = 190
MAX_LINES_N = 40


class ImageLook:
    """Looks at images for the image gate. One for the whole service; holds no state between looks.

    outside : for the registries, with the operator's list of hosts inside
    credentials : the operator's logins; a login is used only for the registry that it is for, and only for images that
        a target names, never for one that only an event names
    """

    def __init__(self, outside: Outside, credentials: Credentials | None = None) -> None:
        self._outside = outside
        self._credentials = credentials or Credentials()

    async def look(self, rule: ImageGate, subject: ImageSubject, of: Candidate) -> GateReport:
        """The gate's answer. Raises nothing for what registries or events do."""
        try:
            canary_name, notes = _asked_for(_filled(subject.canary, of), of)
        except ValueError as error:
            return _could_not_look(f"The candidate's image is not known: {error}", "see the target's image templates")
        try:
            async with asyncio.timeout(rule.within_s):
                return await self._look(rule, subject, of, canary_name, notes)
        except TimeoutError:
            return _could_not_look(
                f"The images of {of.service.name} could not be read within {rule.within_s:g} s",
                f"see whether {canary_name.registry} answers from here",
                _facts_of(from_name(canary_name)),
            )

    async def _look(
        self, rule: ImageGate, subject: ImageSubject, of: Candidate, canary_name: ImageReference, notes: list[str]
    ) -> GateReport:
        registry = Registry(self._outside, self._credentials)
        try:
            canary = identify(await registry.image(canary_name, subject.platform))
        except NoSuchPlatform as error:
            return _report(
                Finding.FAILED,
                f"The candidate does not run on the nodes: {error}",
                f"Build it for {subject.platform}, or correct the platform of the target.",
                notes,
                _facts_of(from_name(canary_name)),
            )
        except PortError as error:
            return _could_not_look(
                f"The candidate's image could not be read: {error}", "", _facts_of(from_name(canary_name)), notes
            )
        try:
            stable_name = ImageReference.parse(_filled(subject.stable, of))
            stable = identify(await registry.image(stable_name, subject.platform))
        except (ValueError, PortError) as error:
            return _could_not_look(
                f"Stable's image could not be read, so nothing is compared: {error}", "", _facts_of(canary), notes
            )
        return judged(rule, stable, canary, notes)


def judged(rule: ImageGate, stable: Identity, canary: Identity, notes: list[str] | None = None) -> GateReport:
    """The answer for two images that were read. Pure."""
    difference = compare(stable, canary)
    forbidden = [concern for concern in difference.concerns if concern.risk in rule.fail_on]
    open_risks = [risk for risk in difference.undecided if risk in rule.fail_on]
    others = [concern for concern in difference.concerns if concern.risk not in rule.fail_on]
    lines = [
        *(notes or ()),
        *(f"{c.sentence}. To do: {c.to_do}. Source: {c.source}." for c in (*forbidden, *others)),
        *_remarks(difference),
    ]
    facts = facts_of_both(stable, canary, difference)
    if forbidden:
        return _report(
            Finding.FAILED,
            f"The policy forbids what this image changes: {_joined(c.sentence.partition(':')[0] for c in forbidden)}.",
            _joined(dict.fromkeys(_sentence(c.to_do) for c in forbidden), " "),
            lines,
            facts,
        )
    if open_risks:
        return _report(
            Finding.COULD_NOT_LOOK,
            f"The policy forbids {_joined(risk.value for risk in open_risks)}, and the images do not tell enough to "
            f"rule it out.",
            "Set the version as a label or an environment variable of the image (NUMPY_VERSION, PYTHON_VERSION), or "
            "take the risk off fail_on.",
            lines,
            facts,
        )
    return _report(Finding.PASSED, _what_changed(difference), "", lines, facts)


def facts_of_both(stable: Identity, canary: Identity, difference: Difference) -> dict[str, str]:
    """Named values to show: ``{"TensorFlow": "2.12.0 -> 2.13.0"}``. Values that are alike are shown once."""
    facts = {change.name: str(change) for change in difference.changes}
    facts |= {
        "User": _arrow(_user(stable), _user(canary)),
        "Platform": _arrow(stable.platform, canary.platform),
        "Size": _arrow(size(stable.size_bytes), size(canary.size_bytes)),
        "Layers": f"{difference.shared_layers_n} of {len(canary.layers)} shared, {size(difference.new_bytes)} new",
        "Stable image": str(stable.reference.at(stable.digest)),
        "Canary image": str(canary.reference.at(canary.digest)),
    }
    return facts


def size(size_bytes: int) -> str:
    """``1.9 GB``, in powers of ten as registries show it."""
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.1f} kB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1_000_000_000 else f"{size_bytes / 1e9:.1f} GB"


def _asked_for(template: str, of: Candidate) -> tuple[ImageReference, list[str]]:
    """The candidate's reference: the target's, with the event's digest where it speaks of the same repository."""
    reference = ImageReference.parse(template)
    if not of.artifact:
        return reference, []
    try:
        told = ImageReference.parse(of.artifact)
    except ValueError as error:
        return reference, [f"The event names an artifact that is no image: {readable(str(error))}"]
    if told.name != reference.name:
        return reference, [f"The event names {told}, the target {reference}; the target's was read"]
    return (reference.at(told.digest) if told.digest else reference), []


def _filled(template: str, of: Candidate) -> str:
    """Raises ValueError for a template whose version the event does not give."""
    values = {
        "service": of.service.name,
        "namespace": of.service.namespace,
        "canary_version": of.version,
        "stable_version": of.stable_version or "",
    }
    try:
        text = Template(template).substitute(values)
    except KeyError as error:
        raise ValueError(f"{template!r} holds {error}, which is none of {', '.join(values)}") from None
    if "${stable_version}" in template and not of.stable_version:
        raise ValueError("the event does not say which version is stable")
    return text


def _what_changed(difference: Difference) -> str:
    if difference.same_image:
        return "Both arms run the same image."
    changed = [f"{change.name} {change}" for change in difference.changes if change.differs]
    told = f"; {len(difference.concerns)} known risks are told" if difference.concerns else ""
    return f"{_joined(changed) or 'No version that the images tell changed'}{told}."


def _remarks(difference: Difference) -> Iterator[str]:
    if difference.environment_changed:
        names = ", ".join(readable(name, 40) for name in difference.environment_changed[:20])
        yield f"Environment changed in {names}."
    derived = [
        f"{change.name} from {seen.where}"
        for change in difference.changes
        for seen in (change.canary,)
        if seen is not None and "(" in seen.where
    ]
    if derived:
        yield f"Not read but known from tables: {'; '.join(derived)}."
    unread = [change.name for change in difference.changes if change.stable is None or change.canary is None]
    if unread:
        yield f"Told by one image only: {', '.join(unread)}."


def _facts_of(identity: Identity) -> dict[str, str]:
    facts = {name: seen.value for name, seen in identity.found.items()}
    if identity.digest:
        facts |= {"User": _user(identity), "Size": size(identity.size_bytes)}
    return {**facts, "Canary image": str(identity.reference)}


def _user(identity: Identity) -> str:
    return identity.user or "root (none set)"


def _arrow(old: str, new: str) -> str:
    return new if old == new else f"{old} -> {new}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _joined(parts: Iterator[str] | dict[str, None] | list[str], by: str = ", ") -> str:
    return by.join(parts)


def _could_not_look(
    sentence: str, to_do: str, facts: dict[str, str] | None = None, notes: list[str] | None = None
) -> GateReport:
    return _report(Finding.COULD_NOT_LOOK, sentence, to_do, notes or [], facts or {})


def _report(finding: Finding, sentence: str, to_do: str, lines: list[str], facts: dict[str, str]) -> GateReport:
    """Cut to what a report may hold."""
    if not to_do and finding is not Finding.PASSED:
        to_do = "Put right what the sentence names, then resume the rollout or send the event again."
    return GateReport(
        gate="image",
        finding=finding,
        sentence=readable(sentence, LINE_CHARACTERS_N),
        to_do=readable(to_do, LINE_CHARACTERS_N),
        lines=tuple(readable(line, LINE_CHARACTERS_N) for line in lines[:MAX_LINES_N]),
        facts={key: readable(value, FACT_CHARACTERS_N) for key, value in facts.items()},
    )
