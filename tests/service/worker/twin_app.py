"""The worker's real Celery application over trainer children that run the twin."""

from functools import cache

from celery import Celery

from core.settings import load_settings
from worker.celery_app import create_app
from worker.trainer_slot import TRAINER_COMMAND

TWIN_COMMAND = (*TRAINER_COMMAND, "--engine", "tests.service.worker.twin:TwinEngine")


@cache
def _app() -> Celery:
    return create_app(load_settings(), trainer_command=TWIN_COMMAND)


def __getattr__(name: str) -> Celery:
    if name == "app":
        return _app()
    raise AttributeError(name)
