# Three images from one file:
#   docker build --target api .        HTTP edge and command line, without torch
#   docker build --target worker .     training and housekeeping
#   docker build --target inference .  answers
# torch comes from the default package index (CUDA on Linux). For a CPU build name PyTorch's CPU index:
#   docker build --target worker --build-arg TORCH_INDEX=… .

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/tunery/bin:$PATH \
    TUNERY_DATA_DIR=/data TUNERY_LOG_JSON=true
RUN useradd --system --uid 10001 --create-home tunery && install -d -o tunery -g tunery /data
WORKDIR /srv

# What changes seldom comes first: the packages, by the same pins as everywhere. A change of our own code installs none of them again.
FROM base AS packages-api
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/tunery \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > api.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement api.txt

FROM packages-api AS packages-engine
ARG TORCH_INDEX=""
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['engine'], sep='\n')" > engine.txt \
    && pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement engine.txt

FROM base AS wheel
COPY pyproject.toml requirements-models.txt README.md LICENSE ./
COPY app app
COPY cli cli
COPY core core
COPY inference inference
COPY migrations migrations
COPY peft_engine peft_engine
COPY worker worker
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM packages-api AS build-api
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl

FROM packages-engine AS build-engine
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl

FROM base AS api
COPY --from=build-api /opt/tunery /opt/tunery
USER tunery
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# One process per container; more containers behind a load balancer are more processes. Texts that are
# written may end: give it `stop_grace_period: 40s`, and the inference image too.
CMD ["python", "-m", "uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--timeout-graceful-shutdown", "30", "--no-server-header"]

FROM base AS worker
COPY --from=build-engine /opt/tunery /opt/tunery
USER tunery
# A worker that hangs still has its process: only an answer over the broker shows that it takes jobs.
# Asking takes two seconds of processor time, and as many more as trainers leave it to wait.
HEALTHCHECK --interval=60s --timeout=45s --start-period=60s \
    CMD ["sh", "-c", "celery -A worker.celery_app inspect ping --timeout 10 --destination training@$HOSTNAME"]
# A running job writes its checkpoint first: give it `stop_grace_period: 30s`.
CMD ["python", "-m", "celery", "-A", "worker.celery_app", "worker", "-P", "threads", "--without-gossip", "--without-mingle", "--loglevel", "INFO", "-c", "1", "-Q", "training", "-n", "training@%h"]

FROM base AS inference
COPY --from=build-engine /opt/tunery /opt/tunery
USER tunery
EXPOSE 8010
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8010/healthz', timeout=4)"]
CMD ["python", "-m", "inference"]
