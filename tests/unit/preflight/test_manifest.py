"""Documents of registries: whatever comes is read, or refused with a sentence."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model.gates.image import ImageGate, Risk
from service.preflight.image.gate import judged
from service.preflight.image.identity import identify
from service.preflight.image.manifest import (
    Descriptor,
    Index,
    Malformed,
    Manifest,
    NoSuchPlatform,
    Platform,
    for_platform,
    image,
    index_or_manifest,
)
from service.preflight.image.reference import ImageReference
from tests.unit.preflight.images import official

SEEDED = settings(deadline=None, derandomize=True)
REFERENCE = ImageReference.parse("r.example/ml/ranker:2.13.0-gpu-jupyter")
DIGEST = "sha256:" + "0" * 64
MANIFEST = Manifest(config=Descriptor(digest=DIGEST, size=2))

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("schemaVersion", "mediaType", "manifests", "config", "layers"), VALUES)
)
TEXTS = st.text(max_size=60) | st.sampled_from(["RUN pip install tensorflow==2.13.0", "ARG PYTHON_VERSION=python3.11"])
CONFIGURATIONS = st.fixed_dictionaries(
    {"os": st.just("linux"), "architecture": st.just("amd64")},
    optional={
        "created": TEXTS | VALUES,
        "history": st.lists(st.fixed_dictionaries({"created_by": TEXTS}), max_size=5) | VALUES,
        "config": st.fixed_dictionaries(
            {},
            optional={
                "User": TEXTS,
                "Env": st.lists(st.sampled_from(["CUDA_VERSION=", "TENSORFLOW_VERSION=", "A"]).flatmap(
                    lambda name: TEXTS.map(lambda value: name + value)), max_size=4),
                "Labels": st.dictionaries(TEXTS, TEXTS | st.none(), max_size=3),
                "Entrypoint": st.lists(TEXTS, max_size=3),
            },
        )
        | VALUES,
    },
)  # fmt: skip


@SEEDED
@given(st.binary(max_size=200) | DOCUMENTS.map(lambda document: json.dumps(document).encode()))
def test_any_bytes_are_a_manifest_an_index_or_malformed(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        found = index_or_manifest(body, "the manifest")
        if isinstance(found, Index):
            with contextlib.suppress(NoSuchPlatform):
                for_platform(found, "linux/amd64", "the image")


@SEEDED
@given(CONFIGURATIONS)
def test_any_configuration_makes_a_report_that_can_be_shown_or_is_malformed(configuration: dict[str, Any]) -> None:
    stable = identify(official("2.12.0", "2.12.0-gpu"))
    try:
        found = image(REFERENCE, DIGEST, None, MANIFEST, json.dumps(configuration).encode(), "linux/amd64")
    except (Malformed, NoSuchPlatform):
        return
    report = judged(ImageGate(fail_on=tuple(Risk)), stable, identify(found))
    assert all(text.isprintable() for text in (report.sentence, report.to_do, *report.lines, *report.facts.values()))


def test_a_variant_is_taken_only_where_it_was_asked_for_or_nothing_was() -> None:
    def entry(variant: str, last: str) -> Descriptor:
        return Descriptor(digest="sha256:" + last * 64, size=1, platform=Platform("linux", "arm", variant))

    index = Index(manifests=[entry("v6", "6"), entry("v7", "7")])
    assert for_platform(index, "linux/arm/v7", "it").digest.endswith("7")
    assert for_platform(index, "linux/arm", "it").digest.endswith("6")
    with pytest.raises(NoSuchPlatform, match=r"for linux/arm/v8; it is for linux/arm/v6, linux/arm/v7$"):
        for_platform(index, "linux/arm/v8", "it")
