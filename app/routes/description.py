"""The description of the API (OpenAPI) as it really answers.

The framework describes a 422 that no route gives, and cannot see the body that ``POST /datasets``
streams.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.schemas.datasets import DatasetCreate

_REF = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Make the application give our description.

    Args:
        app: The application with all of its routes.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    for methods in described["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    schemas = described["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    body = DatasetCreate.model_json_schema(ref_template=_REF)
    schemas.update(body.pop("$defs", {}))
    schemas["DatasetCreate"] = body
    return described
