"""Every way a job can fail.

WorkerError                        retry?   who must act
├─ RequestError                    no       the caller changes the request
│  ├─ INVALID_INPUT                         the field's path is in `details`
│  ├─ MODEL_NOT_FOUND                       near matches are in the hint
│  ├─ MODEL_ACCESS_DENIED                   the hint names the token that would open it
│  ├─ MODEL_UNSAFE                          a pickle, a web page: not a safetensors file
│  ├─ MODEL_INCOMPATIBLE                    an SDXL LoRA on an SD 1.x checkpoint
│  ├─ OUTPUT_TOO_LARGE                      bytes and limit are in `details`
│  ├─ JOB_CANCELLED                         the caller asked for it; RunPod shows CANCELLED
│  └─ JOB_TIMED_OUT                         it took longer than this endpoint gives a job
├─ SourceError                     yes      nobody; later
│  ├─ SOURCE_UNAVAILABLE
│  ├─ SOURCE_QUOTA
│  ├─ DOWNLOAD_INCOMPLETE
│  ├─ DOWNLOAD_BUDGET_EXCEEDED     no       the caller or the operator: file above the limit
│  └─ MODEL_CORRUPT                no       bytes are not what was declared
├─ VolumeError                     no       the operator
│  ├─ VOLUME_FULL
│  ├─ VOLUME_BUSY                  yes
│  └─ VOLUME_MISSING               yes
├─ UPLOAD_FAILED                   yes      nobody; later. No where the bucket refuses: the operator
├─ WORKER_STOPPED                  yes      nobody; another worker takes it
├─ BackendError                    yes      the worker mends itself, or is replaced
│  ├─ BACKEND_CRASHED
│  ├─ BACKEND_STALLED
│  ├─ BACKEND_NOT_READY
│  ├─ BACKEND_FAILED               no       A1111 answered 500 and lives
│  ├─ BACKEND_OUT_OF_MEMORY        no       smaller size or batch
│  └─ WRONG_MODEL_USED             no       A1111 fell back in silence; the picture is withheld
└─ INTERNAL                        no       us: a bug, with its traceback in the log

The codes are a public contract: docs/errors.md lists them, and they are never renamed.
"""

from typing import Any, ClassVar

SHOWN_CHARS = 80


def shown(value: object) -> str:
    """Return `value` short enough for a message: what a caller sent may be megabytes."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


class WorkerError(Exception):
    """A failure that the caller is told about by code, in one sentence and with a way out.

    Args:
        message: what happened: a sentence with a capital and a full stop, values in it.
        hint: what to do about it, a sentence; empty if there is nothing to do.
        details: JSON values for programs (`field`, `size_bytes`, `limit_bytes`, …).
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = details
        # Set on an instance once an in-place restart of A1111 has failed: never by a class, so
        # that no mistake of a caller can cost a worker.
        self.refresh_worker = False

    def as_response(self) -> dict[str, Any]:
        """Return the job result that makes the RunPod SDK report FAILED.

        Source: runpod-python 1.12.0, rp_job.run_job pops `error` and `refresh_worker`.
        """
        text = f"{self.code}: {self}" + (f" {self.hint}" if self.hint else "")
        response: dict[str, Any] = {"error": text, "code": self.code, "retryable": self.retryable}
        if self.details:
            response["details"] = self.details
        if self.refresh_worker:
            response["refresh_worker"] = True
        return response


class RequestError(WorkerError):
    """The request itself is wrong; sending it again cannot help."""


class InvalidInputError(RequestError):
    """A field is missing, of the wrong type or out of range."""

    code = "INVALID_INPUT"


class ModelNotFoundError(RequestError):
    """No root holds the named model, or its host does not know it."""

    code = "MODEL_NOT_FOUND"


class ModelAccessDeniedError(RequestError):
    """The host wants a token, or refuses the one that it got."""

    code = "MODEL_ACCESS_DENIED"


class ModelUnsafeError(RequestError):
    """What came is a pickle, a web page or something else that is no safetensors file."""

    code = "MODEL_UNSAFE"


class ModelIncompatibleError(RequestError):
    """The model is sound and cannot work in its place: wrong kind, or wrong architecture."""

    code = "MODEL_INCOMPATIBLE"


class OutputTooLargeError(RequestError):
    """The result is larger than the platform would carry."""

    code = "OUTPUT_TOO_LARGE"


class JobCancelledError(RequestError):
    """The caller, or the platform's time limit, stopped the job."""

    code = "JOB_CANCELLED"


class JobTimedOutError(RequestError):
    """The job took longer than this endpoint gives one."""

    code = "JOB_TIMED_OUT"


class SourceError(WorkerError):
    """A place that we download from failed us."""

    retryable = True


class SourceUnavailableError(SourceError):
    """The host answered 5xx, timed out, or could not be reached."""

    code = "SOURCE_UNAVAILABLE"


class SourceQuotaError(SourceError):
    """The host answered 429: too many requests."""

    code = "SOURCE_QUOTA"


class DownloadIncompleteError(SourceError):
    """The connection broke, or stood still, more often than we retry."""

    code = "DOWNLOAD_INCOMPLETE"


class DownloadBudgetExceededError(SourceError):
    """The file is larger, or took longer, than this worker may spend on one."""

    code = "DOWNLOAD_BUDGET_EXCEEDED"
    retryable = False


class ModelCorruptError(SourceError):
    """The bytes are not those that were declared: another digest, or cut off."""

    code = "MODEL_CORRUPT"
    retryable = False


class VolumeError(WorkerError):
    """The disk that holds the models failed us."""


class VolumeFullError(VolumeError):
    """No space left, or over quota."""

    code = "VOLUME_FULL"


class VolumeBusyError(VolumeError):
    """The volume did not let us write in time."""

    code = "VOLUME_BUSY"
    retryable = True


class VolumeMissingError(VolumeError):
    """The volume is not mounted, or went away."""

    code = "VOLUME_MISSING"
    retryable = True


class UploadFailedError(WorkerError):
    """A bucket did not take the pictures, for a reason that may pass."""

    code = "UPLOAD_FAILED"
    retryable = True


class UploadRefusedError(UploadFailedError):
    """It will not take them later either: keys, bucket or rights are wrong."""

    retryable = False


class WorkerStoppedError(WorkerError):
    """The platform stopped this worker before the job was done."""

    code = "WORKER_STOPPED"
    retryable = True


class BackendError(WorkerError):
    """A1111 failed, rather than the request."""

    retryable = True


class BackendCrashedError(BackendError):
    """The A1111 process ended, or closed the connection before it answered."""

    code = "BACKEND_CRASHED"


class BackendStalledError(BackendError):
    """A1111 is alive but stopped answering."""

    code = "BACKEND_STALLED"


class BackendNotReadyError(BackendError):
    """A1111 did not come up in time."""

    code = "BACKEND_NOT_READY"


class BackendFailedError(BackendError):
    """A1111 answered 500; it catches its own exceptions, so it still serves the next job."""

    code = "BACKEND_FAILED"
    retryable = False


class BackendOutOfMemoryError(BackendError):
    """The GPU's memory did not suffice for this size and batch."""

    code = "BACKEND_OUT_OF_MEMORY"
    retryable = False


class WrongModelUsedError(BackendError):
    """A1111 answered 200 with a picture made by another model; it is withheld."""

    code = "WRONG_MODEL_USED"
    retryable = False


class InternalError(WorkerError):
    """A bug of this worker; the log of the job has the traceback."""

    code = "INTERNAL"
