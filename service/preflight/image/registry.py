"""A client for registries that speak the OCI distribution API (v2): manifests, configurations, referrers.

Read only, and of blobs only small ones: layers are never fetched. What comes is taken for what was asked only when its
digest says so. Logins go to the registry that they are for and to the token server that it names, by TLS unless the
operator listed the host for plain HTTP; they are in no message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from yarl import URL

from service.preflight.image.credentials import Credentials
from service.preflight.image.manifest import (
    ACCEPT,
    IMAGE_CONFIGS,
    OCI_INDEX,
    Descriptor,
    Image,
    Index,
    Malformed,
    Manifest,
    decoded,
    digest_of,
    for_platform,
    image,
    index_or_manifest,
)
from service.preflight.image.reference import ImageReference
from service.preflight.outside import Answer, Outside, TooLarge
from service.preflight.report import readable
from service.ring.ports import Refused, Unavailable

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""What the specification asks registries to take."""
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_TOKEN_BYTES = 64 * 1024
MAX_PAGES_N = 10
MAX_ATTACHED_N = 100
"""Each may cost a request to learn its type."""
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
TIMEOUT_S = 10.0

_PARAMETER_OR_SCHEME = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([A-Za-z]+)(?=\s|,|$)')
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")
_NEXT = re.compile(r'<([^<>]{1,2000})>\s*;\s*rel="?next"?')


class NotFound(Refused):
    """The registry knows no such image, or does not let this login know of it: many answer both alike."""


@dataclass(frozen=True, slots=True)
class Content:
    """A manifest or index as it came, and its digest."""

    digest: str
    body: bytes
    document: Index | Manifest


@dataclass(frozen=True, slots=True)
class Attached:
    """The content of an artifact that refers to an image."""

    body: bytes
    created: datetime | None
    """When the artifact says that it was made; None where it does not."""


class _Token(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


class _Fault(msgspec.Struct, frozen=True):
    code: str = ""
    message: str | None = None


class _Faults(msgspec.Struct, frozen=True):
    errors: list[_Fault] = []


class Registry:
    """Reads registries. Keeps tokens for as long as it lives, so one is made for each look.

    Every call raises Unavailable where it may succeed later, and Refused (NotFound, NoSuchPlatform, Malformed,
    NotAllowed, TooLarge) where a person has to change something. Safe to repeat and to cancel.
    """

    def __init__(
        self, outside: Outside, credentials: Credentials | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._outside = outside
        self._credentials = credentials or Credentials()
        self._timeout_s = timeout_s
        self._authorization: dict[str, str] = {}
        """Header values by registry and repository."""

    async def image(self, reference: ImageReference, platform: str) -> Image:
        """The image for ``os/architecture[/variant]``: at most three documents, each verified."""
        top = await self.manifest(reference)
        index_digest, content = None, top
        if isinstance(top.document, Index):
            index_digest = top.digest
            chosen = for_platform(top.document, platform, str(reference))
            content = await self.manifest(reference.at(chosen.digest))
        manifest = content.document
        if not isinstance(manifest, Manifest):
            raise Malformed(f"{reference} is an index of indexes, which is not read")
        if manifest.config.media_type not in IMAGE_CONFIGS:
            kind = readable(manifest.artifact_type or manifest.config.media_type)
            raise Malformed(f"{reference} is no container image but {kind or 'of no type'}")
        config = await self.blob(reference, manifest.config, limit_bytes=MAX_CONFIG_BYTES)
        return image(reference, content.digest, index_digest, manifest, config, platform)

    async def manifest(self, reference: ImageReference) -> Content:
        """The manifest or index of a tag or digest, verified."""
        answer = await self._read(reference, f"manifests/{reference.key}", MAX_MANIFEST_BYTES, ACCEPT)
        told = answer.headers.get("Docker-Content-Digest", "")
        expected = reference.digest or (told if re.fullmatch(r"sha(256|512):[0-9a-f]+", told) else "")
        digest = digest_of(answer.body, like=expected)
        if expected and digest != expected:
            raise Malformed(f"{reference}: the registry sent a manifest with digest {digest}, not {expected}")
        return Content(digest, answer.body, index_or_manifest(answer.body, f"the manifest of {reference}"))

    async def blob(self, reference: ImageReference, descriptor: Descriptor, *, limit_bytes: int) -> bytes:
        """A blob of the reference's repository, verified. Raises TooLarge without asking where its size says so."""
        if descriptor.size > limit_bytes:
            raise TooLarge(
                f"{reference}: blob {descriptor.digest} has {descriptor.size} bytes; at most {limit_bytes} are read"
            )
        answer = await self._read(reference, f"blobs/{descriptor.digest}", descriptor.size, "*/*")
        if digest_of(answer.body, like=descriptor.digest) != descriptor.digest:
            raise Malformed(f"{reference}: the registry sent another blob than {descriptor.digest}")
        return answer.body

    async def referrers(self, reference: ImageReference, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """What was attached to the image of the reference's digest: reports, signatures.

        artifact_type : only these; empty: all
        A registry without the referrers API is asked for the tag that stands in for it. Nothing attached is ().
        """
        if reference.digest is None:
            raise ValueError(f"{reference} names no digest, and what is attached is attached to a digest")
        path: str | None = f"referrers/{reference.digest}"
        if artifact_type:
            path = f"{path}?{URL.build(query={'artifactType': artifact_type}).query_string}"
        found: list[Descriptor] = []
        try:
            for _ in range(MAX_PAGES_N):
                answer = await self._read(reference, str(path), MAX_MANIFEST_BYTES, OCI_INDEX)
                page = decoded(answer.body, Index, f"the list of what is attached to {reference}")
                found += page.manifests or ()
                if len(found) > MAX_ATTACHED_N:
                    raise TooLarge(f"more than {MAX_ATTACHED_N} things are attached to {reference}")
                path = self._next_page(reference, answer)
                if path is None:
                    break
        except NotFound:
            algorithm, _, hexadecimal = reference.digest.partition(":")
            stand_in = ImageReference(
                reference.registry, reference.repository, f"{algorithm}-{hexadecimal[:64]}", digest=None
            )
            try:
                document = (await self.manifest(stand_in)).document
            except NotFound:
                return ()
            found = list(document.manifests or ())[:MAX_ATTACHED_N] if isinstance(document, Index) else []
        typed = [await self._typed(reference, descriptor) for descriptor in found]
        return tuple(d for d in typed if not artifact_type or d.artifact_type == artifact_type)

    async def attached(
        self, reference: ImageReference, artifact_type: str, platform: str, *, limit_bytes: int
    ) -> Attached:
        """The newest artifact of a type that was attached to an image, or to the index that it comes from.

        Raises NotFound where nothing of the type is attached, TooLarge past ``limit_bytes``, and what ``image`` raises.
        """
        known = await self.image(reference, platform)
        found: tuple[Descriptor, ...] = ()
        for digest in (known.digest, known.index_digest):
            found += await self.referrers(reference.at(digest), artifact_type) if digest else ()
        if not found:
            raise NotFound(f"nothing of type {readable(artifact_type)} is attached to {reference}")
        newest = max(found, key=lambda descriptor: _created(descriptor) or datetime.min.replace(tzinfo=UTC))
        artifact = (await self.manifest(reference.at(newest.digest))).document
        layers = artifact.layers if isinstance(artifact, Manifest) else []
        chosen = [layer for layer in layers if layer.media_type == artifact_type] or layers
        if len(chosen) != 1:
            raise Malformed(f"the artifact {newest.digest} at {reference} holds {len(chosen)} contents instead of one")
        return Attached(await self.blob(reference, chosen[0], limit_bytes=limit_bytes), _created(newest))

    async def _typed(self, reference: ImageReference, descriptor: Descriptor) -> Descriptor:
        """With the artifact's type: some registries tell that of its empty configuration, so the manifest is asked."""
        if descriptor.artifact_type not in ("", EMPTY_CONFIG):
            return descriptor
        document = (await self.manifest(reference.at(descriptor.digest))).document
        told = (document.artifact_type or document.config.media_type) if isinstance(document, Manifest) else ""
        return msgspec.structs.replace(descriptor, artifact_type=told)

    def _next_page(self, reference: ImageReference, answer: Answer) -> str | None:
        """The rest of the address after the repository; a page elsewhere would get this registry's login."""
        match = _NEXT.search(answer.headers.get("Link", "")[:4096])
        if match is None:
            return None
        start = URL(self._address(reference, ""))
        try:
            following = start.join(URL(match[1]))
        except ValueError:
            following = URL()
        if str(following).startswith(str(start)):
            return str(following).removeprefix(str(start))
        raise Malformed(f"{reference}: the registry's next page of referrers lies outside of the repository")

    def _address(self, reference: ImageReference, path: str) -> str:
        return f"{self._outside.base(reference.api_host)}/v2/{reference.repository}/{path}"

    async def _read(self, reference: ImageReference, path: str, limit_bytes: int, accept: str) -> Answer:
        """A success, after a login where the registry asks for one."""
        for attempt in range(2):
            known = self._authorization.get(reference.name)
            answer = await self._outside.get(
                self._address(reference, path),
                limit_bytes=limit_bytes,
                timeout_s=self._timeout_s,
                accept=accept,
                headers={"Authorization": known} if known else {},
            )
            if answer.status != 401 or attempt or not self._is_of(reference, answer):
                break
            self._authorization[reference.name] = await self._log_in(reference, answer)
        if answer.status == 200:
            return answer
        raise _refusal(reference, answer, logged_in=self._credentials.of(reference) is not None)

    def _is_of(self, reference: ImageReference, answer: Answer) -> bool:
        """Whether the registry itself answered: a host that it redirects to may not say where its login goes."""
        ours, theirs = URL(self._address(reference, "")), URL(answer.url)
        return (ours.scheme, ours.host, ours.port) == (theirs.scheme, theirs.host, theirs.port)

    async def _log_in(self, reference: ImageReference, answer: Answer) -> str:
        """The Authorization header that the registry's challenge asks for."""
        challenges = _challenges(answer.headers.getall("WWW-Authenticate", []))
        login = self._credentials.of(reference)
        bearer = challenges.get("bearer")
        if bearer is None:
            if "basic" not in challenges:
                raise Refused(f"{reference.registry} refuses without saying how to log in (no Bearer, no Basic)")
            if login is None:
                raise Refused(
                    f"{reference.registry} wants a login, and none is given; add it to the file of registry logins "
                    f"(preflight.registry_logins_file; by hand: --logins)"
                )
            return login.basic
        try:
            realm = URL(bearer["realm"])
            query = {"scope": f"repository:{reference.repository}:pull"}
            if "service" in bearer:
                query["service"] = bearer["service"]
            address = str(realm.update_query(query))
        except (KeyError, ValueError) as error:
            raise Malformed(f"{reference.registry} names no token server that could be asked") from error
        granted = await self._outside.get(
            address,
            limit_bytes=MAX_TOKEN_BYTES,
            timeout_s=self._timeout_s,
            accept="application/json",
            headers={"Authorization": login.basic} if login else {},
        )
        if granted.status != 200:
            raise _refusal(reference, granted, logged_in=login is not None)
        try:
            given = msgspec.json.decode(granted.body, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Without the cause: it may quote what may be half a token.
            raise Malformed(f"{granted.url} sent no token that could be read") from None
        token = given.token or given.access_token or ""
        if not _TOKEN.fullmatch(token):
            raise Malformed(f"{granted.url} sent no token")
        return f"Bearer {token}"


def _created(descriptor: Descriptor) -> datetime | None:
    try:
        moment = datetime.fromisoformat((descriptor.annotations or {})["org.opencontainers.image.created"])
    except (KeyError, ValueError):
        return None
    return moment if moment.tzinfo else None


def _challenges(headers: list[str]) -> dict[str, dict[str, str]]:
    """Parameters by scheme, both in lower case; the first of a scheme counts."""
    found: dict[str, dict[str, str]] = {}
    for header in headers[:10]:
        current: dict[str, str] = {}
        for match in _PARAMETER_OR_SCHEME.finditer(header[:8192]):
            name, quoted, bare, scheme = match.groups()
            if scheme:
                current = {}
                found.setdefault(scheme.lower(), current)
            else:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
                current.setdefault(name.lower(), value)
    return found


def _refusal(reference: ImageReference, answer: Answer, *, logged_in: bool) -> Exception:
    """What an answer that is no success means."""
    said = f"{answer.url} answers {answer.status}{_faults(answer.body)}"
    match answer.status:
        case 401 | 403:
            who = "the login that is set for it" if logged_in else "anybody without a login"
            return Refused(
                f"{said}: {reference.name} is not open to {who}; give a login that may pull it, in the file of "
                f"registry logins"
            )
        case 404:
            return NotFound(
                f"{said}: {reference} does not exist, or the login may not know of it; see whether it was pushed"
            )
        case 429:
            return Unavailable(
                f"{said}: too many requests; a login usually gets more",
                retry_after_s=_seconds(answer.headers.get("Retry-After", "")),
            )
        case status if status >= 500:
            return Unavailable(said)
        case _:
            return Refused(f"{said} to a request for {reference}")


def _faults(body: bytes) -> str:
    try:
        faults = msgspec.json.decode(body, type=_Faults).errors
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    told = "; ".join(f"{fault.code} {fault.message or ''}".strip() for fault in faults[:3])
    return f" ({readable(told)})" if told else ""


def _seconds(retry_after: str) -> float:
    try:
        return max(0.0, min(600.0, float(retry_after)))
    except ValueError:
        return 60.0
