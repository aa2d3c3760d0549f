"""The OpenAPI document, generated from the routes and their pydantic models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.http.headers import API_KEY
from gateway.http.routes import ApiRoute, Operation
from mesh.observability.telemetry import weir_version

Schema: TypeAlias = dict[str, Any]

_REF = "#/components/schemas/{model}"


def openapi(routes: Sequence[ApiRoute], *, secured: bool) -> Schema:
    """Return the document; `secured` says whether API keys are required."""
    schemas = _schemas(routes)
    paths: dict[str, Schema] = {}
    for route in routes:
        if route.operation is None:
            continue
        for method in sorted(route.methods or ()):
            operation = _operation(route, route.operation, schemas)
            if secured and route.operation.secured:
                operation["security"] = [{"key": []}, {"header": []}]
            paths.setdefault(route.path_format, {})[method.lower()] = operation
    components: Schema = {"schemas": schemas}
    if secured:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": API_KEY},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Weir", "version": weir_version()},
        "paths": paths,
        "components": components,
    }


def _schemas(routes: Sequence[ApiRoute]) -> Schema:
    operations = [route.operation for route in routes if route.operation is not None]
    request_models = [model for each in operations for model in (each.body, each.query) if model]
    response_models = [each.answer for each in operations if each.answer]
    response_models += [each.error for each in operations]
    models = [(model, "validation") for model in request_models] + [
        (model, "serialization") for model in response_models
    ]
    _, document = models_json_schema(
        models,  # type: ignore[arg-type]
        ref_template=_REF,
    )
    schemas: Schema = document["$defs"]
    return dict(sorted(schemas.items()))


def _operation(route: ApiRoute, operation: Operation, schemas: Schema) -> Schema:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.param_convertors
    ]
    if operation.query is not None:
        parameters += _query_parameters(schemas[operation.query.__name__])
    described: Schema = {"summary": operation.summary, "responses": _responses(operation)}
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": _reference(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _query_parameters(schema: Schema) -> list[Schema]:
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, **_query_schema(field)}
        for name, field in schema["properties"].items()
    ]


def _query_schema(field: Schema) -> Schema:
    """The schema of a parameter; an array is JSON text."""
    if field.get("type") == "array":
        return {"content": {"application/json": {"schema": field}}}
    return {"schema": field}


def _responses(operation: Operation) -> Schema:
    content: Schema = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": _reference(operation.answer)}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": _reference(operation.error)}}
    success: Schema = {"description": "Success"}
    if content:
        success["content"] = content
    return {str(operation.status): success, "default": {"description": "Failure", "content": error}}


def _reference(model: type[BaseModel]) -> Schema:
    return {"$ref": _REF.format(model=model.__name__)}
