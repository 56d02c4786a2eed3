"""The OpenAPI document, made from the route table and the view models, so that it cannot say what is not so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.auth import Role


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as a reader of the document sees it."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    role: Role | None = Role.VIEWER
    query: dict[str, str] = field(default_factory=dict)
    """Query parameter -> what it does."""
    conflicts: bool = False


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models = {op.answer for op in operations} | {op.body for op in operations if op.body} | {ProblemDocument}
    _, schemas = models_json_schema(
        [(model, "serialization") for model in sorted(models, key=lambda m: m.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for op in operations:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Serinus",
            "version": version,
            "summary": "Rollouts, their evidence, the decisions on them, and people's orders.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas["$defs"],
        },
    }


def _operation(op: Operation) -> dict[str, Any]:
    problem = {"content": {"application/problem+json": {"schema": _ref(ProblemDocument)}}}
    answers: dict[str, Any] = {
        "200": {"description": "OK", "content": {"application/json": {"schema": _ref(op.answer)}}}
    }
    if op.role is not None:
        answers |= {
            "401": {"description": "No valid token", **problem},
            "403": {"description": "Wrong role", **problem},
        }
    if "{" in op.path:
        answers["404"] = {"description": "Not known", **problem}
    if op.body is not None:
        answers["400"] = {"description": "Not readable", **problem}
    if op.conflicts:
        answers["409"] = {"description": "The rollout does not allow it now", **problem}
    answers["503"] = {"description": "The store is away", **problem}
    out: dict[str, Any] = {"operationId": op.name, "summary": op.summary, "responses": answers}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", op.path)
    ] + [{"name": n, "in": "query", "description": text, "schema": {"type": "string"}} for n, text in op.query.items()]
    if op.conflicts:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key twice has the effect of once.",
                "schema": {"type": "string", "maxLength": 200},
            }
        )
    if parameters:
        out["parameters"] = parameters
    if op.body is not None:
        out["requestBody"] = {"content": {"application/json": {"schema": _ref(op.body)}}, "required": not op.conflicts}
    if op.role is None:
        out["security"] = []
    return out


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
