"""The image gate: reads both images' manifests and says what changed and what that is known to bring."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from service.model.gates.image import ImageGate, ImageSubject
from service.model.gates.report import Candidate, Finding, GateReport
from service.preflight.image.credentials import Credentials
from service.preflight.image.difference import Difference, compare
from service.preflight.image.identity import Identity, from_name, identify
from service.preflight.image.manifest import NoSuchPlatform
from service.preflight.image.reference import ImageReference
from service.preflight.image.registry import Registry
from service.preflight.outside import Outside
from service.preflight.report import gate_report, readable
from service.preflight.threads import in_thread
from service.ring.ports import PortError


class ImageLook:
    """Looks at images for the image gate. One for the whole service; holds no state between looks.

    outside : for the registries, with the operator's list of hosts inside
    logins : reads the operator's logins, at every look, because some registries' are renewed twice a day; may raise
        PortError. A login is used only for the registry that it is for, and only for images that a target names, never
        for one that only an event names
    """

    def __init__(self, outside: Outside, logins: Callable[[], Credentials] = Credentials) -> None:
        self._outside = outside
        self._logins = logins

    async def look(self, rule: ImageGate, subject: ImageSubject, of: Candidate) -> GateReport:
        """The gate's answer. Raises nothing for what registries or events do."""
        try:
            candidate, notes = _asked_for(subject.canary, of)
        except ValueError as error:
            return _could_not_look(f"The candidate's image is not known: {error}", "See the target's image templates.")
        stable: ImageReference | str
        try:
            stable = ImageReference.parse(subject.stable)
        except ValueError as error:
            stable = str(error)
        return await self.compared(rule, candidate, stable, subject.platform, notes=notes)

    async def compared(
        self,
        rule: ImageGate,
        candidate: ImageReference,
        stable: ImageReference | str,
        platform: str,
        *,
        notes: Sequence[str] = (),
    ) -> GateReport:
        """The answer for two references; ``stable`` may be the reason why there is none. Raises nothing either."""
        found = await self._read(candidate, platform, rule.within_s, notes)
        if isinstance(found, GateReport):
            return found
        why = stable if isinstance(stable, str) else ""
        if isinstance(stable, ImageReference):
            other = await self._read(stable, platform, rule.within_s, notes)
            if isinstance(other, Identity):
                return judged(rule, other, found, notes)
            why = other.sentence
        return _could_not_look(f"Nothing to compare with, for stable: {why}", "", _facts_of(found), notes)

    async def alone(self, candidate: ImageReference, platform: str, *, within_s: float) -> GateReport:
        """What one image is, compared with nothing. Raises nothing either."""
        found = await self._read(candidate, platform, within_s, ())
        if isinstance(found, GateReport):
            return found
        told = ", ".join(f"{name} {seen.value}" for name, seen in found.found.items())
        lines = [*(_sentence(text) for text in found.disagreements), *_places(found)]
        return _report(Finding.PASSED, f"{told or 'The image tells no version'}.", "", lines, _facts_of(found))

    async def _read(
        self, reference: ImageReference, platform: str, within_s: float, notes: Sequence[str]
    ) -> Identity | GateReport:
        """The image's identity, or the answer that says why there is none."""
        facts = _facts_of(from_name(reference))
        try:
            async with asyncio.timeout(within_s):
                credentials = await in_thread(self._logins)
                found = await Registry(self._outside, credentials).image(reference, platform)
                # Build steps that are full of versions take a second.
                return await in_thread(identify, found)
        except NoSuchPlatform as error:
            to_do = f"Build it for {platform}, or correct the platform of the target."
            return _report(Finding.FAILED, f"It does not run on the nodes: {error}", to_do, notes, facts)
        except PortError as error:
            return _could_not_look(f"The image could not be read: {error}", "", facts, notes)
        except TimeoutError:
            sentence = f"The image {reference} could not be read within {within_s:g} s"
            return _could_not_look(sentence, f"See whether {reference.registry} answers from here.", facts, notes)


def judged(rule: ImageGate, stable: Identity, canary: Identity, notes: Sequence[str] = ()) -> GateReport:
    """The answer for two images that were read. Pure."""
    difference = compare(stable, canary)
    forbidden = [concern for concern in difference.concerns if concern.risk in rule.fail_on]
    open_risks = [risk for risk in difference.undecided if risk in rule.fail_on]
    others = [concern for concern in difference.concerns if concern.risk not in rule.fail_on]
    lines = [
        *notes,
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
        "Built": _arrow(stable.created or "not told", canary.created or "not told"),
        "Revision": _arrow(stable.revision or "not told", canary.revision or "not told"),
        "Size": _arrow(size(stable.size_bytes), size(canary.size_bytes)),
        "Layers": f"{difference.shared_layers_n} of {len(canary.layers)} shared, {size(difference.new_bytes)} new",
        "Stable image": str(stable.reference),
        "Stable digest": stable.digest,
        "Canary image": str(canary.reference),
        "Canary digest": canary.digest,
    }
    return facts


def size(size_bytes: int) -> str:
    """``1.9 GB``, in powers of ten as registries show it."""
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.1f} kB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1_000_000_000 else f"{size_bytes / 1e9:.1f} GB"


def _asked_for(named: str, of: Candidate) -> tuple[ImageReference, list[str]]:
    """The candidate's reference: the target's, with the event's digest where it speaks of the same repository."""
    reference = ImageReference.parse(named)
    if not of.artifact:
        return reference, []
    try:
        told = ImageReference.parse(of.artifact)
    except ValueError as error:
        return reference, [f"The event names an artifact that is no image: {readable(str(error))}"]
    if told.name != reference.name:
        return reference, [f"The event names {told}, the target {reference}; the target's was read"]
    return (reference.at(told.digest) if told.digest else reference), []


def _what_changed(difference: Difference) -> str:
    if difference.same_image:
        return "Both arms run the same image."
    changed = [f"{change.name} {change}" for change in difference.changes if change.differs]
    risks = ", ".join(dict.fromkeys(concern.risk.value for concern in difference.concerns))
    return (
        f"{_joined(changed) or 'No version that the images tell changed'}{f'; known risks: {risks}' if risks else ''}."
    )


def _remarks(difference: Difference) -> Iterator[str]:
    if difference.environment_changed:
        names = ", ".join(readable(name, 40) for name in difference.environment_changed[:20])
        yield f"Environment changed in {names}."
    yield from _read_in(difference)


def _read_in(difference: Difference) -> Iterator[str]:
    """For every value where it was read, a line each."""
    for change in difference.changes:
        old, new = (seen.where if seen else "not told" for seen in (change.stable, change.canary))
        yield f"Source of {change.name}: {new}" + ("." if old == new else f"; of stable's: {old}.")


def _places(identity: Identity) -> Iterator[str]:
    for name, seen in identity.found.items():
        yield f"Source of {name}: {seen.where}."


def _facts_of(identity: Identity) -> dict[str, str]:
    facts = {name: seen.value for name, seen in identity.found.items()}
    if identity.digest:
        facts |= {
            "User": _user(identity),
            "Built": identity.created or "not told",
            "Revision": identity.revision or "not told",
            "Size": size(identity.size_bytes),
            "Canary digest": identity.digest,
        }
    return {**facts, "Canary image": str(identity.reference)}


def _user(identity: Identity) -> str:
    return identity.user or "root (none set)"


def _arrow(old: str, new: str) -> str:
    return new if old == new else f"{old} -> {new}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _joined(parts: Iterable[str], by: str = ", ") -> str:
    return by.join(parts)


def _could_not_look(
    sentence: str, to_do: str, facts: dict[str, str] | None = None, notes: Sequence[str] = ()
) -> GateReport:
    return _report(Finding.COULD_NOT_LOOK, sentence, to_do, notes, facts or {})


def _report(finding: Finding, sentence: str, to_do: str, lines: Sequence[str], facts: dict[str, str]) -> GateReport:
    return gate_report("image", finding, sentence, to_do, lines=lines, facts=facts)
