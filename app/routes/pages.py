"""Pages for people: the dashboard and the API's documentation, with nothing loaded from outside."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from core.errors import NotFound

router = APIRouter(include_in_schema=False)

_OWN_FOLDER = Path(__file__).parent.parent / "static"
_OWN_FILES = frozenset({"dashboard.css", "dashboard.js", "icon.svg"})

_DOCS_FILES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css"})
"""Of the wheel ``fastapi-offline``: the framework's own page loads them from elsewhere."""

_DASHBOARD_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
)
# the documentation page starts itself with an inline script and draws with inline styles
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'"
)
_PROTECTED = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@router.get("/")
async def dashboard() -> FileResponse:
    """Show jobs, adapters and data sets, live."""
    headers = {"content-security-policy": _DASHBOARD_POLICY + _PROTECTED}
    return FileResponse(_OWN_FOLDER / "index.html", headers=headers)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Show every route, with a form to try it."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Tunery API",
        swagger_js_url="/static/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger-ui.css",
        swagger_favicon_url="/static/icon.svg",
        swagger_ui_parameters={"docExpansion": "list", "defaultModelsExpandDepth": 0},
    )
    page.headers["content-security-policy"] = _DOCS_POLICY + _PROTECTED
    return page


@router.get("/static/{name}")
async def static(name: str) -> FileResponse:
    """Give a file of a page."""
    return FileResponse(_locate(name), headers={"cache-control": "max-age=3600"})


def _locate(name: str) -> Path:
    if name in _OWN_FILES:
        return _OWN_FOLDER / name
    wheel = find_spec("fastapi_offline")
    if name in _DOCS_FILES and wheel is not None and wheel.submodule_search_locations:
        return Path(wheel.submodule_search_locations[0]) / "static" / name
    raise NotFound(f"there is no file {name[:100]!r}")
