"""Paths of OpenAI's that are not offered: a program is told so, and what there is instead."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from app.openai.services.absent import FAMILIES
from core.errors import NotFound

_METHODS = ["DELETE", "GET", "PATCH", "POST", "PUT"]


def _refusing(family: str, instead: str) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise NotFound(
            f"/v1/{family.rstrip('/')} of OpenAI's is not offered here: {instead}",
            code="not_offered",
        )

    return refuse


def _make_router() -> APIRouter:
    made = APIRouter(prefix="/v1", include_in_schema=False)
    for family, instead in FAMILIES.items():
        refuse = _refusing(family, instead)
        path = f"/{family.rstrip('/')}"
        # where the path itself is offered, it is so by POST: what lists is not
        own = ["GET"] if family.endswith("/") else _METHODS
        made.add_api_route(path, refuse, methods=own)
        made.add_api_route(f"{path}/{{rest:path}}", refuse, methods=_METHODS)
    return made


router = _make_router()
