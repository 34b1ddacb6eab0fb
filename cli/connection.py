"""Which service the commands speak to, and with which key."""

from dataclasses import dataclass
from pathlib import Path

import typer

from cli.client import Client, RequestFailedError
from cli.serve import KEY_FILE


@dataclass(frozen=True)
class Connection:
    """What the options before the command say.

    Attributes:
        url: Address of the service.
        api_key: The key, when one was given.
        data_dir: Where a service of this machine would keep its first key.
    """

    url: str
    api_key: str | None
    data_dir: Path


def connect(context: typer.Context) -> Client:
    """Opens a client as the options say; without a key, with the first one of this machine.

    Args:
        context: Of the running command.

    Returns:
        The client, to be closed.
    """
    connection = context.ensure_object(Connection)
    return Client(connection.url, connection.api_key or read_key(connection.data_dir))


def read_key(data_dir: Path) -> str | None:
    """Reads the key that the first `tunery serve` left in its data directory.

    Args:
        data_dir: The data directory.

    Returns:
        The key, or None where there is no such file.

    Raises:
        RequestFailedError: The file is there and may not be read.
    """
    path = data_dir / KEY_FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"Cannot read {path}: {error.strerror}; give a key with --api-key"
        raise RequestFailedError(reason, code="unreadable_file") from error
