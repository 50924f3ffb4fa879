"""The OpenAPI document: what the library finds out by itself, and the bodies that the routes read themselves (body.py)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from lumos.serving.ask import VideoRequest


def video_body() -> dict[str, Any]:
    """The request body of POST /v1/videos: JSON, or a form with a file in it."""
    form = VideoRequest.model_json_schema()
    form.pop("$defs")
    form["properties"] = {name: _not_null(schema) for name, schema in form["properties"].items()} | {
        "input_reference": {"type": "string", "format": "binary", "description": "image or video to start from, or an id"}
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/VideoRequest"}},
            "multipart/form-data": {"schema": form},
        },
    }


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        request = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(request.pop("$defs", {}))
        schemas["VideoRequest"] = request
        text = {"type": "string"}
        maybe = {"type": ["string", "null"]}
        error = {"type": "object", "properties": {"message": text, "type": text, "param": maybe, "code": text}}
        schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": error}}
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field of a form is there or not; there is no null in it."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**rest, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})}
