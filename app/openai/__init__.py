"""The OpenAI-compatible face under ``/v1``, thin over the services of the native routes."""
