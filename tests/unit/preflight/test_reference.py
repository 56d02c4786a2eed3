"""Image references: every form that people write, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.preflight.image.reference import ImageReference

SEEDED = settings(deadline=None, derandomize=True)
D = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("ubuntu", "docker.io", "library/ubuntu", "latest", None),
        ("tensorflow/tensorflow:2.13.0-gpu-jupyter", "docker.io", "tensorflow/tensorflow", "2.13.0-gpu-jupyter", None),
        ("tensorflow/serving:2.12.0", "docker.io", "tensorflow/serving", "2.12.0", None),
        ("nvcr.io/nvidia/tensorflow:24.08-tf2-py3", "nvcr.io", "nvidia/tensorflow", "24.08-tf2-py3", None),
        ("registry.corp.example:5000/ml/ranker:7", "registry.corp.example:5000", "ml/ranker", "7", None),
        ("localhost:5000/a", "localhost:5000", "a", "latest", None),
        ("localhost/a/b", "localhost", "a/b", "latest", None),
        ("[::1]:5000/a/b:x", "[::1]:5000", "a/b", "x", None),
        ("index.docker.io/library/redis", "docker.io", "library/redis", "latest", None),
        (f"r.example/a/b@{D}", "r.example", "a/b", None, D),
        (f"r.example/a/b:1.0@{D}", "r.example", "a/b", "1.0", D),
        ("r.example/a__b/c-d.e_f:_x", "r.example", "a__b/c-d.e_f", "_x", None),
        (f"pkg:oci/ranker@{D.replace(':', '%3A')}?repository_url=r.example/ml/ranker&tag=2.4.0", "r.example",
         "ml/ranker", "2.4.0", D),
        (f"pkg:oci/ranker@{D}?repository_url=r.example:5000/ml", "r.example:5000", "ml/ranker", None, D),
        ("pkg:docker/customer/image@1.2?repository_url=gcr.io", "gcr.io", "customer/image", "1.2", None),
        ("pkg:docker/cassandra@latest", "docker.io", "library/cassandra", "latest", None),
    ],
)  # fmt: skip
def test_a_reference_says_where_and_which(
    text: str, registry: str, repository: str, tag: str | None, digest: str | None
) -> None:
    assert ImageReference.parse(text) == ImageReference(registry, repository, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/Upper",
        "a\n",
        "r.example/Upper",
        "r.example/a//b",
        "r.example/../etc/passwd",
        "r.example/a/../b",
        "a:",
        "a:-x",
        "a:" + "x" * 129,
        "a@sha256:123",
        "a@md5:" + "0" * 32,
        "a b",
        "a\nb",
        "https://r.example/a",
        "user@r.example/a",
        "r.example:99999999/a",
        "r.example:65536/a",
        "r.example:0/a",
        "r.example:x/a",
        "-r.example/a",
        "pkg:oci/ranker@" + D,
        "pkg:pypi/tensorflow@2.13.0",
        "pkg:oci/a?repository_url=http://169.254.169.254/a",
        "pkg:oci/a?repository_url=r.example/a&tag=../x",
        "a" * 2000,
        "r.example/" + "/".join(["abcdefgh"] * 40),
    ],
)
def test_what_is_no_reference_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"image reference|package URL"):
        ImageReference.parse(text)


@SEEDED
@given(st.text(max_size=60))
def test_any_text_is_a_reference_that_reads_back_the_same_or_is_refused(text: str) -> None:
    try:
        reference = ImageReference.parse(text)
    except ValueError:
        return
    assert ImageReference.parse(str(reference)) == reference


def test_the_digest_is_asked_for_where_a_tag_stands_beside_it() -> None:
    assert ImageReference.parse(f"a:1@{D}").key == D
    assert ImageReference.parse("a:1").key == "1"
    assert ImageReference.parse("a").api_host == "registry-1.docker.io"
    assert ImageReference.parse("a:1").at(D) == ImageReference.parse(f"a:1@{D}")
