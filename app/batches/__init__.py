"""The process that runs batches: ``python -m app.batches``. Not part of the HTTP edge.

Each request of a file goes through the whole application as if it had come over HTTP, so that a
batch answers and refuses what the endpoint does. Reading order: ``process`` claims, ``run`` works
through one batch, ``lines`` and ``checking`` read its file, ``tries``, ``slots`` and ``door`` ask,
``parts`` keeps answers, ``ending`` makes the files of them.
"""
