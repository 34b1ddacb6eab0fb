"""A small HTTP client of the service, for the commands; httpx or curl would do as well."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

# Uploads of large files and answers of a cold model take longer than httpx waits by itself.
TIMEOUT = httpx.Timeout(120.0, connect=5.0)
# A whole model is written before its first byte comes.
EXPORT = httpx.Timeout(600.0, connect=5.0)
PAGE_ROWS = 100


class RequestFailedError(Exception):
    """The service refused, or could not be reached; the message is meant for a person.

    Attributes:
        code: The stable code of the service's error, or "unreachable".
        body: The error object as it came; empty when nothing came.
    """

    def __init__(self, message: str, *, code: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = body or {}


class Client:
    """Speaks to one service with one key.

    Args:
        url: Address of the service, without a path.
        api_key: A key, or None where the service asks for none.

    Raises:
        RequestFailedError: Either cannot be one.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        # what a shell or a file put around it belongs to no key
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()):
            reason = "The API key has characters that no key has; give it as it was shown"
            raise RequestFailedError(reason, code="bad_option")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            reason = f"{self.url!r} is no address: it begins with neither http:// nor https://"
            raise RequestFailedError(reason, code="bad_option")
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT)
        except httpx.InvalidURL as error:
            reason = f"{self.url} is no address ({error}); give one with --url or TUNERY_URL"
            raise RequestFailedError(reason, code="bad_option") from error

    def __enter__(self) -> "Client":
        """Opens the connection.

        Returns:
            This client.
        """
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connection."""
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        """Asks for a resource.

        Args:
            path: Path under the address.
            **query: Query parameters; None is left out.

        Returns:
            The JSON of the answer.
        """
        params = {name: str(value) for name, value in query.items() if value is not None}
        return self._send("GET", path, params=params)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Creates or acts.

        Args:
            path: Path under the address.
            body: JSON to send.

        Returns:
            The JSON of the answer.
        """
        return self._send("POST", path, json=body)

    def events(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Post JSON and listen to server-sent events.

        Args:
            path: Such as ``/predict``.
            body: What is asked.

        Yields:
            Name and data of each event.

        Raises:
            RequestFailedError: Refused, or ended in an error.
        """  # noqa: DOC501, DOC502  what refuses is made below
        try:
            with self._http.stream("POST", path, json=body) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                yield from _read_events(answer.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """Makes a resource what it shall be.

        Args:
            path: Path under the address.
            body: JSON to send.

        Returns:
            The JSON of the answer.
        """
        return self._send("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        """Removes a resource.

        Args:
            path: Path under the address.

        Returns:
            The JSON of the answer.
        """
        return self._send("DELETE", path)

    def upload(
        self, files: dict[str, Path], fields: dict[str, str], *, path: str = "/datasets"
    ) -> Any:
        """Sends files, streamed from disk.

        Args:
            files: `file`, and for a data set perhaps `validation_file` and `test_file`.
            fields: `name`, `task`, …
            path: `/datasets` or `/adapters`.

        Returns:
            What was made of them.

        Raises:
            RequestFailedError: A file cannot be read, or the service refused.
        """
        with contextlib.ExitStack() as stack:
            parts = {}
            for name, file in files.items():
                try:
                    handle = stack.enter_context(file.open("rb"))
                except OSError as error:
                    reason = f"Cannot read {file}: {error.strerror}"
                    raise RequestFailedError(reason, code="unreadable_file") from error
                # a file may be called in any bytes, a form speaks UTF-8
                parts[name] = (os.fsencode(file.name).decode(errors="replace"), handle)
            return self._send("POST", path, files=parts, data=fields)

    def download(self, path: str, target: Path, **query: str) -> int:
        """Writes a file of the service to disk; one that is there is replaced when all has come.

        Args:
            path: Path under the address.
            target: Where to.
            **query: Query parameters.

        Returns:
            Its length in bytes.

        Raises:
            RequestFailedError: Refused, broken off, or the file cannot be written.
        """  # noqa: DOC501  what refuses is made below
        partial = target.with_name(f".{target.name}.part")
        try:
            with self._http.stream("GET", path, params=query, timeout=EXPORT) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                with partial.open("wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
            partial.replace(target)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except OSError as error:
            reason = f"Cannot write {target}: {error.strerror}"
            raise RequestFailedError(reason, code="unwritable_file") from error
        finally:
            partial.unlink(missing_ok=True)
        return target.stat().st_size

    def pages(self, path: str, *, limit: int, **query: object) -> Iterator[dict[str, Any]]:
        """Walks through a list, newest first.

        Args:
            path: Path of the list.
            limit: How many entries at most.
            **query: Filters; None is left out.

        Yields:
            One entry at a time.
        """
        after: str | None = None
        while limit > 0:
            page = self.get(path, limit=min(limit, PAGE_ROWS), after=after, **query)
            yield from page["data"]
            limit -= len(page["data"])
            after = page["last_id"]
            if not page["has_more"]:
                return

    def _send(self, method: str, path: str, **kwargs: Any) -> Any:
        try:
            answer = self._http.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            raise _refusal(answer)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise _strange(answer) from error

    def _unreachable(self, error: httpx.TransportError) -> RequestFailedError:
        why = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            reason = (
                f"Cannot reach {self.url} ({why}). Is it running? "
                "Start it with `tunery serve`, or give its address with --url or TUNERY_URL"
            )
        else:
            reason = f"The connection to {self.url} broke off ({why}); ask again"
        return RequestFailedError(reason, code="unreachable")


def _read_events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of server-sent events; comments are left out.

    Raises:
        RequestFailedError: The service tells of a failure.
    """
    name = "message"
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = json.loads(value)
            if name == "error":
                raise RequestFailedError(
                    data["error"]["message"], code=data["error"]["code"], body=data
                )
            yield name, data


def _refusal(answer: httpx.Response) -> RequestFailedError:
    try:
        body = answer.json()["error"]
        message, code = str(body["message"]), str(body["code"])
    except (ValueError, KeyError, TypeError):
        return _strange(answer)
    if body.get("param"):
        message = f"{message}  [{body['param']}]"
    return RequestFailedError(message, code=code, body=body)


def _strange(answer: httpx.Response) -> RequestFailedError:
    message = f"HTTP {answer.status_code} from {answer.request.url}: not an answer of Tunery"
    return RequestFailedError(message, code="unexpected_answer")
