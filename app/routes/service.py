"""``/healthz`` and ``/readyz``: for probes, without a key."""

from fastapi import APIRouter, Response

from app.dependencies import PartsDep
from app.schemas.models import Alive, Readiness
from app.services.readiness import check_readiness

router = APIRouter(tags=["service"])


# Some balancers and monitors probe by HEAD; the framework answers it only where it is named.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Alive")
async def healthz() -> Alive:
    """Answer as long as the process runs; asks nothing else."""
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "A part is down; `checks` says which."}},
)
async def readyz(response: Response, parts: PartsDep) -> Readiness:
    """Say whether database, broker, storage and inference answer, each within 3 s."""
    found = await check_readiness(parts)
    if found.status != "ready":
        response.status_code = 503
        response.headers["retry-after"] = "2"
    return found
