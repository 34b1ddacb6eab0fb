"""``/metrics``: numbers for a monitor."""

from fastapi import APIRouter, Response

from app.dependencies import GuardedRoute, PartsDep, ReadDep, Reader
from app.schemas.errors import error_answers

router = APIRouter(tags=["service"], route_class=GuardedRoute)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The oldest version of the text format, which every monitor reads."""


@router.get(
    "/metrics",
    summary="Metrics",
    response_class=Response,
    responses={
        200: {
            "description": "The Prometheus text format.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'tunery_jobs{status="queued"} 3.0\n',
                }
            },
        },
        **error_answers(),
    },
)
def show_metrics(_caller: Reader, session: ReadDep, parts: PartsDep) -> Response:
    """Show requests of this api process, and counts of the whole service, in Prometheus' format.

    `tunery_http_request_seconds` is a histogram by `method`, `route` and `status`. `tunery_jobs`
    (by `status`), `tunery_jobs_lease_expired`, `tunery_datasets_validating`, `tunery_batches_open`,
    `tunery_inference_processes`, `tunery_webhook_deliveries_pending` and
    `tunery_webhook_deliveries_total` (by `outcome`) count over all tenants, without a name of
    anything.
    """
    return Response(parts.measures.render(session), media_type=_CONTENT_TYPE)
