"""The training edge: Celery tasks that supervise a trainer child, and the child itself."""
