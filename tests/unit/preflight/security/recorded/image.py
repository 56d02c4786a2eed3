"""Writes image.tar, a tiny image in Docker's archive form: packages by their records alone, as a scanner reads them.

    python image.py image.tar

The same bytes each time, so that its digests are those of the recorded reports.
"""

import hashlib
import io
import json
import sys
import tarfile

DEBIAN = {"libc6": ("glibc", "2.36-9"), "zlib1g": ("zlib", "1:1.2.13.dfsg-1"), "coreutils": ("", "9.1-1")}
PYTHON = {"tensorflow": "2.12.0", "keras": "2.12.0", "setuptools": "65.5.0", "numpy": "1.23.5"}
STATUS = """Package: {name}
Status: install ok installed
Priority: optional
Section: libs
Architecture: amd64
{source}Version: {version}
Maintainer: Debian <debian@example.org>
Description: {name}

"""
# As real ones begin and end; there is nothing in it.
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "QUJD" * 16 + "\n-----END RSA PRIVATE KEY-----\n"


def layer() -> bytes:
    """The one layer."""
    packages = [
        STATUS.format(name=name, version=version, source=f"Source: {source}\n" if source else "")
        for name, (source, version) in DEBIAN.items()
    ]
    files = {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "etc/debian_version": "12.0\n",
        "var/lib/dpkg/status": "".join(packages),
        "app/deploy.pem": KEY,
    }
    for name, version in PYTHON.items():
        at = f"usr/local/lib/python3.11/site-packages/{name}-{version}.dist-info/METADATA"
        files[at] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    return packed({name: text.encode() for name, text in files.items()})


def packed(files: dict[str, bytes]) -> bytes:
    """A tar without times or owners."""
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return into.getvalue()


def image() -> bytes:
    """Layer, configuration and manifest."""
    root = layer()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-11-25T12:00:00Z",
        "config": {"User": "1000:1000", "Env": ["PATH=/usr/bin:/bin"], "Cmd": ["serve"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(root).hexdigest()]},
        "history": [{"created": "2026-11-25T12:00:00Z", "created_by": "image.py"}],
    }
    written = json.dumps(config).encode()
    name = hashlib.sha256(written).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": ["registry.example/ml/ranker:2.12.0"], "Layers": ["layer.tar"]}]
    return packed({"manifest.json": json.dumps(manifest).encode(), name: written, "layer.tar": root})


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        file.write(image())
