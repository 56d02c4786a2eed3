"""`serinus preflight image`: who an image is, and what changes from the one that stable runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.gate_report import fault, refuse, tell

if TYPE_CHECKING:
    from service.model.gates.image import ImageGate
    from service.model.gates.report import GateReport
    from service.preflight.image.reference import ImageReference
    from service.settings import PreflightSettings

WITHIN_S = 60.0
"""For each image."""


def image(
    reference: Annotated[str, typer.Argument(metavar="REF", help="The candidate, as tensorflow/serving:2.13.0-gpu")],
    stable: Annotated[str | None, typer.Option(metavar="REF", help="What stable runs, to compare with")] = None,
    platform: Annotated[str, typer.Option(metavar="OS/ARCH", help="Which one of a multi-arch image")] = "linux/amd64",
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="RISK", help="Fail for this risk, as keras_2_to_3; may be repeated")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A registry inside, as host:5000 or http://host:5000; may be repeated"),
    ] = None,
    logins: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .dockerconfigjson with logins for registries")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The settings file, for its section preflight")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as JSON")] = False,
) -> None:
    """Say what an image holds, and what changes from stable's.

    serinus preflight image tensorflow/tensorflow:2.13.0-gpu

    serinus preflight image nvcr.io/nvidia/tensorflow:24.08-tf2-py3 --stable nvcr.io/nvidia/tensorflow:24.02-tf2-py3

    serinus preflight image registry.internal:5000/ml/ranker:7 --stable registry.internal:5000/ml/ranker:6 --allow
    registry.internal:5000 --logins ~/.docker/config.json --fail-on cuda_major --fail-on became_root

    Framework, CUDA, cuDNN, Python, NumPy, user and layers are read from the manifest and the configuration, each told
    with where it stood; no layer is fetched and nothing is run. With --stable, what changed is told with what such
    changes are known to bring, what to do, and where that is said.

    A registry with an address inside is read only with --allow. Without a login only public images can be read.

    Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look.
    """
    from pydantic import ValidationError

    from service.model.gates.image import ImageGate, ImageSubject, Risk
    from service.preflight.image.reference import ImageReference
    from service.preflight.outside import Allowed
    from service.settings import PreflightSettings, SettingsError, load

    try:
        platform = ImageSubject(canary="image", stable="image", platform=platform).platform
    except ValidationError as error:
        refuse(f"{fault(error, options={'platform': '--platform'})}; write it as linux/amd64")
    try:
        references = [ImageReference.parse(text) for text in (reference, stable) if text is not None]
        rule = ImageGate(fail_on=tuple(Risk(name) for name in fail_on or ()), within_s=WITHIN_S)
        Allowed.listed(allow or ())
    except ValueError as error:
        known = f"; known risks: {', '.join(Risk)}" if "valid Risk" in str(error) else ""
        refuse(f"{error}{known}")
    if rule.fail_on and stable is None:
        refuse("--fail-on compares; name what stable runs with --stable")
    try:
        settings = load(config).preflight if config else PreflightSettings()
    except SettingsError as error:
        refuse(str(error))
    settings = settings.model_copy(
        update={
            "allowed_hosts": (*settings.allowed_hosts, *(allow or ())),
            "registry_logins_file": logins or settings.registry_logins_file,
        }
    )
    tell(asyncio.run(_look(rule, references, platform, settings)), json_output=json_output)


async def _look(
    rule: ImageGate, references: list[ImageReference], platform: str, settings: PreflightSettings
) -> GateReport:
    from service.app.preflight import outside_of, registry_logins_of
    from service.preflight.image.gate import ImageLook

    async with outside_of(settings) as outside:
        look = ImageLook(outside, lambda: registry_logins_of(settings))
        candidate, *stable = references
        if stable:
            return await look.compared(rule, candidate, stable[0], platform)
        return await look.alone(candidate, platform, within_s=rule.within_s)
