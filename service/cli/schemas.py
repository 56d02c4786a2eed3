"""Writes config/schemas: JSON Schemas of all that people or tools write for Serinus, and its OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

FOLDER = Path("config/schemas")


def configuration_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of each kind of configuration file."""
    from service.model.lines import PatternSet
    from service.model.policy import Policy
    from service.model.preset import MetricsPreset
    from service.model.target import Target
    from service.settings import Settings

    kinds: dict[str, type[BaseModel]] = {
        "settings": Settings,
        "policy": Policy,
        "target": Target,
        "metrics": MetricsPreset,
        "logs": PatternSet,
    }
    return {name: model.model_json_schema(by_alias=True) for name, model in kinds.items()}


def all_schemas() -> dict[str, dict[str, Any]]:
    """Everything in the folder, by file name."""
    from service.api.app import openapi_json
    from service.events.forms import schemas

    out = {f"{name}.schema.json": body for name, body in configuration_schemas().items()}
    return out | schemas() | {"openapi.json": openapi_json("1")}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, body in all_schemas().items():
        (FOLDER / name).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
