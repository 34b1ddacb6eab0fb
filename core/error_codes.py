"""The one table of error codes: code, HTTP status, one line for the reader.

``docs/errors.md`` is generated from it (``python -m core.error_codes``) and compared in a test.
Codes are never renamed: clients branch on them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row of the table.

    Attributes:
        status: HTTP status that goes with the code.
        doc: What happened and what to do, in one line.
    """

    status: int
    doc: str


_TABLE: dict[str, tuple[int, str]] = {
    # the request as such
    "bad_input": (400, "A field has a value that cannot be used; `param` names it."),
    "invalid_json": (400, "The body is not valid JSON."),
    "missing_field": (400, "A required field is missing; `param` names it."),
    "unknown_field": (400, "A field that does not exist here; check the spelling of `param`."),
    "unsupported": (400, "A known option that this version does not offer yet."),
    "invalid_api_key": (401, "No API key was sent, or it is wrong, expired or revoked."),
    "missing_scope": (403, "The key is valid but lacks the scope that this route needs."),
    "not_found": (404, "It does not exist, or belongs to another tenant."),
    "method_not_allowed": (405, "The path exists; this method does not."),
    "conflict": (409, "The present state forbids this; sending it again does not help."),
    "idempotency_mismatch": (409, "This Idempotency-Key was used before with another body."),
    "too_large": (413, "The body is larger than the limit; `details` holds the limit."),
    "unsupported_media_type": (415, "The content type or file format is not understood here."),
    "rate_limited": (429, "Too many requests; try again after `Retry-After` seconds."),
    "queue_full": (429, "Too many predictions are waiting; try again after `Retry-After` seconds."),
    "upload_incomplete": (400, "The upload stopped before its end; send it again."),
    "upload_not_found": (404, "Under `/v1`: no such upload."),
    "upload_not_pending": (
        409,
        "The upload is completed, cancelled or expired; begin another.",
    ),
    "upload_mismatch": (
        400,
        "The parts have other bytes than were announced; send what is missing, and complete again.",
    ),
    "too_many_uploads": (409, "Too many uploads are open; complete or cancel one of them."),
    "not_offered": (
        404,
        "A path of OpenAI's that is not offered here; the message says what there is instead.",
    ),
    "host_not_allowed": (403, "With auth off only requests to a loopback host name are answered."),
    "deadline_exceeded": (
        504,
        "The answer took too long; stream it, or send fewer inputs or ask for fewer tokens.",
    ),
    "shutting_down": (503, "The process is about to end; try again, another one answers."),
    # data sets
    "dataset_not_found": (404, "No such data set."),
    "dataset_not_ready": (409, "The data set is still being validated, or was found invalid."),
    "dataset_damaged": (
        409,
        "The stored rows do not match their digest, or are gone; upload the data set again.",
    ),
    "dataset_in_use": (409, "A job that is not finished needs the data set."),
    "dataset_invalid": (400, "The data set has problems; its report lists every one with a fix."),
    "dataset_leakage": (400, "Rows stand in more than one split; mend it or allow leakage."),
    "empty_file": (400, "The file holds no rows."),
    "task_mismatch": (400, "The job's task is not the data set's task."),
    # files and batches
    "file_not_found": (404, "No such file."),
    "file_in_use": (409, "A batch that has not ended needs the file."),
    "batch_not_found": (404, "No such batch."),
    "batch_ended": (409, "The batch has ended; nothing can be changed any more."),
    "batch_expired": (
        503,
        "Of a request: the batch's window was over before its turn; send it in another batch.",
    ),
    "batch_cancelled": (409, "Of a request: its batch was cancelled before its turn."),
    "batch_given_up": (
        500,
        "The process that ran the batch was lost too often at the same requests.",
    ),
    "duplicate_custom_id": (400, "Two requests of a batch have the same `custom_id`."),
    "too_many_requests_in_file": (400, "More requests than a batch may have; split the file."),
    # jobs
    "job_not_found": (404, "No such job."),
    "job_finished": (409, "The job has ended; nothing can be changed any more."),
    "invalid_transition": (409, "The job's state does not allow this move."),
    "estimate_not_found": (404, "No such estimate."),
    "estimate_finished": (409, "The estimate is over; nothing can be changed any more."),
    "estimate_unavailable": (400, "Such a job is not measured beforehand; the message says why."),
    "estimate_lost": (500, "The worker that measured was lost twice; the estimate was given up."),
    "too_many_estimates": (429, "Too many of your estimates wait; ask again when one is over."),
    "packing_impossible": (400, "Rows of this job cannot be packed; the message says why."),
    "too_many_attempts": (500, "The job's worker was lost too often; the job was given up."),
    "trainer_crashed": (500, "The training process ended without a result."),
    "out_of_memory": (500, "The job does not fit into the device's memory; make batches smaller."),
    "certificate_failed": (
        500,
        "The adapter would answer otherwise than it did in training; it was not published.",
    ),
    "loss_not_finite": (
        400,
        "The loss or the weights became infinite or no number; lower the learning rate.",
    ),
    "no_gradient": (
        500,
        "A part of the adapter gets no gradient; or none does: its start fits the rows exactly.",
    ),
    "nothing_to_learn": (
        400,
        "A row has no target: its completion is empty, or its words have no token.",
    ),
    "template_refused": (
        400,
        "The base's chat template refuses these messages; the message holds its own words.",
    ),
    "sweep_not_found": (404, "No such sweep."),
    "sweep_finished": (409, "The sweep has ended; nothing can be changed any more."),
    "sweep_failed": (400, "No trial of the sweep ended with a metric on validation."),
    "no_validation_rows": (
        400,
        "A sweep chooses on validation rows, and there are none.",
    ),
    "too_few_rows": (400, "The training split is empty, or too small."),
    "too_few_labels": (400, "Classification needs two different labels at least."),
    "unknown_label": (400, "A validation or test row has a label that no training row has."),
    "mixed_labels": (400, "Some rows have one label and some a list of labels."),
    "no_classes": (400, "The task has no classes that could be weighed."),
    "unknown_metric": (400, "The task has no such metric for early stopping."),
    "no_such_site": (400, "The base model has no layer or linear of this name."),
    "parent_mismatch": (400, "The job asks for what its parent adapter is not; see `param`."),
    "derived_base_missing": (400, "Nobody here knows what the pruning of this base takes away."),
    "base_memory_full": (503, "No memory is left for this derived base now; try again later."),
    "calibration_missing": (400, "The name of a pruned base does not say which rows decided."),
    "precision_mismatch": (400, "The base model is loaded in another precision."),
    "too_many_devices": (400, "The job asks for more devices than a job is given here."),
    "nothing_to_reuse": (400, "Activations of frozen layers cannot be reused; it says why."),
    "task_missing": (400, "Name the task."),
    "task_not_supported": (400, "This task cannot be trained on this base model, or not yet."),
    "peer_lost": (500, "Another process of the same training is gone; a new start goes on."),
    "trainer_killed": (500, "The training process was killed, probably for want of memory."),
    "trainer_hung": (500, "The training process fell silent and was ended."),
    "trainer_unavailable": (503, "The training process could not be started."),
    # bases, adapters, predictions
    "base_not_found": (404, "No base model of this name is configured."),
    "base_not_served": (409, "The base model is known but not loaded by any inference process."),
    "base_unavailable": (503, "The base model's files could not be loaded."),
    "base_unsupported": (400, "The base model is of a kind that is not offered yet."),
    "head_missing": (500, "The stored delta lacks the head that its task needs."),
    "router_busy": (500, "Two batches met on one model: a fault of ours."),
    "wrong_rows": (500, "A batch does not fit its plan: a fault of ours."),
    "wrong_device": (500, "An adapter and its base are on different devices: a fault of ours."),
    "not_joint": (
        500,
        "A method met a forward of several jobs: a fault of ours.",
    ),
    "adapter_changed": (
        503,
        "The adapter's weights in memory were not the stored ones; ask again.",
    ),
    "device_full": (503, "The device has too little free memory for this input."),
    "request_cancelled": (499, "The client went away before the answer."),
    "model_not_found": (404, "Under `/v1`: no base model, adapter, version or alias of this name."),
    "context_length_exceeded": (400, "Under `/v1`: prompt and answer are longer than the context."),
    "base_mismatch": (400, "The adapter was trained on another base model."),
    "checkpoint_not_found": (
        404,
        "No such checkpoint, or none any more: a job keeps its newest two until it has succeeded.",
    ),
    "adapter_not_found": (404, "No such adapter, version or alias."),
    "adapter_in_use": (
        409,
        "An alias points to the adapter, a job that continues from it is not finished, or requests "
        "that name it wait or run.",
    ),
    "adapter_invalid": (400, "The files cannot be imported; `details` lists every reason."),
    "merge_not_possible": (400, "The adapters do not go together; `details` lists every reason."),
    "export_not_possible": (
        400,
        "The format cannot hold this adapter; `details` lists everything that it cannot hold.",
    ),
    "alias_not_found": (404, "No such alias."),
    "alias_moved": (409, "The alias does not point where `expected_adapter_id` says."),
    "gate_failed": (409, "The new adapter is worse on the test; `details` holds the numbers."),
    "gate_not_comparable": (409, "The adapters cannot be compared; the message says what to do."),
    "name_taken": (
        409,
        "An adapter, a job that will publish one, or an alias has this name already.",
    ),
    "nothing_to_roll_back": (409, "The alias has no such earlier adapter, or it is deleted."),
    "base_model_required": (400, "Rows without an adapter need `base_model`."),
    "base_loading": (503, "The base model is still loading; try again after `Retry-After`."),
    "delta_corrupt": (409, "The stored delta cannot be read; train or import it again."),
    "bank_full": (503, "Every delta in memory is in use; try again after `Retry-After`."),
    "adapter_corrupt": (500, "The stored adapter does not match its digest."),
    "answer_not_finite": (400, "The adapter's numbers overflow on this input; train it again."),
    "bad_option": (400, "An option of the prediction has a value that cannot be used."),
    "not_prepared": (500, "A training began without its preparation: a fault of ours."),
    "too_many_rows": (400, "More inputs in one call than `max_predict_rows`; split the call."),
    "too_long": (400, "The input has more tokens than the base model reads."),
    # webhooks
    "webhook_endpoint_not_found": (404, "No such webhook endpoint."),
    "webhook_delivery_not_found": (404, "No such delivery, or it is forgotten."),
    "webhook_address_refused": (
        400,
        "Webhooks are not sent to this address; the message says which are.",
    ),
    "webhook_unreachable": (400, "The endpoint gave no answer to the test; the message says why."),
    "webhook_disabled": (409, "The endpoint is disabled; enable it first."),
    "too_many_webhook_endpoints": (409, "No more webhook endpoints; delete one first."),
    # what the service stands on
    "internal_error": (500, "A fault of ours; quote `request_id` when reporting it."),
    "unavailable": (503, "A part of the service is down; try again after `Retry-After` seconds."),
    "database_unavailable": (503, "The database does not answer; try again later."),
    "broker_unavailable": (503, "The broker does not answer; accepted jobs are kept."),
    "inference_unavailable": (503, "No inference process answers; try again later."),
    "storage_unavailable": (503, "The object storage does not answer; try again later."),
    "storage_full": (503, "The object storage or the disk is full; nothing was stored."),
    "object_not_found": (404, "The storage holds no object under this key."),
    "object_exists": (409, "Another object is stored under this key already."),
    "invalid_key": (400, "A storage key that is empty, absolute, or leaves its folder."),
}

ERROR_CODES: Mapping[str, ErrorCode] = MappingProxyType(
    {code: ErrorCode(status, doc) for code, (status, doc) in _TABLE.items()}
)


def render_error_table() -> str:
    """Write ``docs/errors.md``.

    Returns:
        The whole page in Markdown, ending in a newline.
    """
    rows = [
        f"| `{code}` | {entry.status} | {entry.doc} |"
        for code, entry in sorted(ERROR_CODES.items(), key=lambda item: (item[1].status, item[0]))
    ]
    return "\n".join(
        [
            "# Error codes",
            "",
            "<!-- Generated: python -m core.error_codes > docs/errors.md -->",
            "",
            'Every error answers `{"error": {"message", "type", "code", "param", "request_id",'
            ' "details"?}}`.',
            "`code` is stable. 409, 500 and 504 carry `x-should-retry: false`; 429 and 503 carry",
            "`Retry-After`.",
            "A failed job shows the same codes in its `error` field.",
            "",
            "| code | status | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(render_error_table())
