"""The HTTP edge: wires parts together and decides nothing.

``uvicorn --factory app.main:create_app`` starts it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import error_handlers
from app.middleware import RequestIds
from app.openai.routes import (
    absent,
    batches,
    chat,
    completions,
    decisions,
    embeddings,
    files,
    fine_tuning,
    uploads,
    webhooks,
)
from app.openai.routes import models as model_cards
from app.routes import (
    adapters,
    aliases,
    datasets,
    description,
    estimates,
    jobs,
    keys,
    metrics,
    models,
    pages,
    predictions,
    service,
    sweeps,
)
from app.services.measures import Measures
from app.services.parts import Parts
from app.services.replicas import Replica, Replicas
from core.db import Database, nodes, open_database
from core.heap import freeze_heap
from core.logs import configure_logging
from core.queue import JobQueue
from core.settings import Settings, load_settings
from core.storage import open_store

DESCRIPTION = """
Fine-tuning as a service: small adapters on shared, frozen base models.

Send rows to `POST /datasets`, train with `POST /jobs`, follow `GET /jobs/{id}`, ask `POST
/predict`.

Programs that speak to OpenAI find the same models under `/v1`.

Send `Authorization: Bearer tk_…`. Every error has the same shape: `{"error": {message, type, code,
param,
request_id, details?}}`; `code` is stable.
"""


def create_app(settings: Settings | None = None, *, is_background: bool = False) -> FastAPI:
    """Build the application; connects to nothing before it is started.

    Args:
        settings: What the machine's owner has set; None reads the environment.
        is_background: Whether nobody waits for what is predicted: its rows come after those of
            requests that somebody waits for.

    Returns:
        The ASGI application.
    """
    chosen = settings or load_settings()
    if settings is None:
        # started by a server, so that this process and its log are ours
        configure_logging(chosen)
    measures = Measures()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.parts = parts = _open_parts(chosen, measures, is_background=is_background)
        if settings is None:
            freeze_heap()
        try:
            yield
        finally:
            await parts.inference.close()
            parts.webhooks.close()
            parts.queue.close()
            parts.database.dispose()

    app = FastAPI(
        title="Tunery",
        version="0.1.0",
        summary="Fine-tuning as a service",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    error_handlers.install(app)
    app.add_middleware(RequestIds, measures=measures)
    # the busiest first: routes are tried in this order
    for module in (
        predictions,
        chat,
        completions,
        embeddings,
        decisions,
        jobs,
        estimates,
        sweeps,
        datasets,
        adapters,
        aliases,
        models,
        model_cards,
        fine_tuning,
        files,
        uploads,
        batches,
        webhooks,
        absent,
        keys,
        service,
        metrics,
        pages,
    ):
        app.include_router(module.router)
    description.install(app)
    return app


def _open_parts(settings: Settings, measures: Measures, *, is_background: bool) -> Parts:
    token = settings.inference_token
    database = open_database(settings)
    return Parts(
        settings=settings,
        database=database,
        store=open_store(settings),
        queue=JobQueue(settings),
        inference=Replicas(
            settings.inference_url,
            lambda: _find_replicas(database),
            token=token.get_secret_value() if token else None,
            is_background=is_background,
        ),
        measures=measures,
    )


def _find_replicas(database: Database) -> list[Replica]:
    with database.read() as session:
        return [
            Replica(node.url, frozenset(str(b.get("name")) for b in node.bases if b.get("ready")))
            for node in nodes.list_live(session)
        ]
