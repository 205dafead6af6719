"""The one place that talks to boto3: requests counted, errors translated, failures of the network tried again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from functools import cache
from typing import Any

import boto3
import botocore.session
from botocore import exceptions as aws
from botocore.config import Config
from botocore.loaders import create_loader

from qnb.brokers.sqs.options import Options
from qnb.errors import AccessDenied, BrokerError, BrokerUnavailable, ConfigurationError, PayloadTooLarge, QnbError

log = logging.getLogger("qnb")

CONNECT_SECONDS = 5.0
_CLOCK = {"RequestExpired", "RequestTimeTooSkewed", "InvalidSignatureTime"}
_CREDENTIALS = {
    "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "InvalidSignatureException", "ExpiredToken", "ExpiredTokenException", "MissingAuthenticationToken",
    "MissingAuthenticationTokenException", "IncompleteSignature", "AuthFailure", "InvalidSecurity", "OptInRequired",
}  # fmt: skip
_RIGHTS = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized"}
_AGAIN = {
    "InternalError", "InternalFailure", "ServiceUnavailable", "RequestThrottled", "ThrottlingException", "Throttling",
    "ThrottledException", "RequestThrottledException", "TooManyRequestsException", "SlowDown", "KmsThrottled",
    "KMS.ThrottlingException",
}  # fmt: skip
_GONE = {"QueueDoesNotExist", "NonExistentQueue", "NoSuchQueue"}


class QueueGone(Exception):
    """The queue is not there (any more)."""


class QueueExists(Exception):
    """A queue of this name has other attributes."""


class DeletedRecently(Exception):
    """A queue of this name was removed less than 60 seconds ago."""


class Refused(BrokerError):
    """Any other error that the server tells. `code` is its name."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@cache
def _loader() -> Any:
    """Reads the model of SQS, which takes longer than all else: once a process."""
    return create_loader()


class Client:
    """SQS as methods of few words. Safe from any thread."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.place = options.endpoint or f"SQS in {options.region or 'the default region'}"
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self.closed = False
        self.pool = ThreadPoolExecutor(options.connections, thread_name_prefix="qnb sqs")
        self._sqs = self._open()

    def _open(self) -> Any:
        options = self.options
        config = Config(
            connect_timeout=3,
            read_timeout=30,
            max_pool_connections=options.connections * 3 + 10,
            retries={"mode": "standard", "total_max_attempts": 1},  # tried again here, with patience
            tcp_keepalive=True,
            user_agent_extra="qnb",
        )
        try:
            inner = botocore.session.Session()
            inner.register_component("data_loader", _loader())
            session = boto3.session.Session(
                botocore_session=inner,
                aws_access_key_id=options.key,
                aws_secret_access_key=options.secret,
                aws_session_token=options.token,
                region_name=options.region,
                profile_name=options.profile,
            )
            local: dict[str, str] = {}
            if options.endpoint is not None and session.region_name is None:
                local["region_name"] = "us-east-1"
            if (
                options.endpoint is not None
                and "amazonaws." not in options.endpoint
                and session.get_credentials() is None
            ):
                local |= {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
            client = session.client("sqs", endpoint_url=options.endpoint, config=config, **local)
        except (aws.BotoCoreError, ValueError) as error:
            raise self._translate_local(error) from error
        self.place = options.endpoint or f"SQS in {client.meta.region_name}"
        return client

    def close(self) -> None:
        """No more requests."""
        self.closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._sqs.close()

    def stats(self) -> dict[str, Any]:
        """Requests since the start, which is what SQS charges for: in all, and by operation."""
        with self._lock:
            counts = dict(sorted(self._requests.items()))
        return {"requests": sum(counts.values()), **counts}

    # Requests --------------------------------------------------------------------------------------------------

    def call(self, operation: str, patience: float | None = None, **arguments: Any) -> Any:
        """One request; while the server is away or busy it is made again, for `patience` seconds."""
        end = time.monotonic() + (self.options.patience if patience is None else patience)
        wait = 0.05
        while True:
            if self.closed:
                raise BrokerUnavailable(f"{self.options.shown} is closed: open a new one")
            with self._lock:
                self._requests[operation] += 1
            try:
                return getattr(self._sqs, operation)(**arguments)
            except aws.ClientError as error:
                translated, again = self._translate(error, operation, arguments)
                cause: Exception = error
            except (aws.BotoCoreError, OSError, ValueError) as error:
                translated, again = self._translate_local(error), not isinstance(error, _FINAL)
                cause = error
            if not again or time.monotonic() + wait > end:
                raise translated from cause
            time.sleep(wait * random.uniform(0.7, 1.3))
            wait = min(wait * 2, 1.0)

    def check(self) -> None:
        """Whether the server answers and knows us, within 5 seconds."""
        answer = self.pool.submit(self._look)
        try:
            answer.result(CONNECT_SECONDS - 0.5)
        except Late:
            raise BrokerUnavailable(self._unreachable("no answer within 5 seconds")) from None

    def _look(self) -> None:
        try:
            if self.options.predefined:
                url = next(iter(self.options.predefined.values()))
                self.call("get_queue_attributes", 0.0, QueueUrl=url, AttributeNames=["MaximumMessageSize"])
            else:
                self.call("list_queues", 0.0, QueueNamePrefix="qnb-no-such-queue", MaxResults=1)
        except QueueGone as error:
            raise ConfigurationError(f"the predefined queue {url} is not there: make it, or mend its URL") from error
        except AccessDenied as error:
            if getattr(error, "code", "") not in _RIGHTS:
                raise
            log.debug("%s may not list queues; going on", self.options.shown)

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """work(item) for all items, several at once; results or exceptions, in order."""
        if len(items) == 1:
            return [self._result(work, items[0])]
        try:
            futures: list[Future[Any]] = [self.pool.submit(self._result, work, item) for item in items]
        except RuntimeError:  # the interpreter is on its way out, or this client is closed
            return [self._result(work, item) for item in items]
        return [future.result() for future in futures]

    def _result(self, work: Callable[[Any], Any], item: Any) -> Any:
        try:
            return work(item)
        except (QnbError, QueueGone) as error:
            return error

    def batch(self, operation: str, url: str, entries: Sequence[dict[str, Any]]) -> dict[int, str]:
        """A batch request of up to 10 entries: position → error of those that failed."""
        left = dict(enumerate(entries))
        failed: dict[int, str] = {}
        for turn in range(4):
            if turn:
                time.sleep(0.1 * 2**turn * random.uniform(0.7, 1.3))
            batch = [{"Id": str(number), **entry} for number, entry in left.items()]
            answer = self.call(operation, QueueUrl=url, Entries=batch)
            problems = {int(problem["Id"]): problem.get("Code", "?") for problem in answer.get("Failed", ())}
            busy = {number: code for number, code in problems.items() if code.rpartition(".")[2] in _AGAIN}
            failed |= {number: code for number, code in problems.items() if number not in busy}
            left = {number: left[number] for number in busy}
            if not busy:
                return failed
        return failed | busy

    # Errors ----------------------------------------------------------------------------------------------------

    def _unreachable(self, why: object) -> str:
        return f"{self.place} cannot be reached ({why}): check the region or endpoint_url, the network, and any proxy"

    def _translate_local(self, error: Exception) -> QnbError:
        """What happened before or without an answer."""
        if isinstance(error, aws.NoRegionError):
            return ConfigurationError("SQS needs a region: sqs://?region=eu-west-1, or set AWS_DEFAULT_REGION")
        if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.CredentialRetrievalError):
            return AccessDenied(
                f"no AWS credentials for {self.place}: sqs://KEY:SECRET@, or set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or run where a role gives them"
            )
        if isinstance(error, aws.ProfileNotFound | aws.TokenRetrievalError | aws.SSOError):
            return AccessDenied(f"the AWS profile gives no credentials: {error}")
        if isinstance(error, aws.ParamValidationError | ValueError):
            return ConfigurationError(f"{self.place}: {error}")
        return BrokerUnavailable(self._unreachable(type(error).__name__))

    def _translate(self, error: Any, operation: str, arguments: dict[str, Any]) -> tuple[Exception, bool]:
        """The error to raise, and whether to try again first."""
        said = error.response.get("Error", {})
        code = str(said.get("Code", "?")).rpartition(".")[2]
        names = {code, str(error.response.get("Error", {}).get("QueryErrorCode", "")), type(error).__name__}
        text = str(said.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        queue = str(arguments.get("QueueUrl", arguments.get("QueueName", ""))).rpartition("/")[2]
        if names & _GONE:
            return QueueGone(queue), False
        if names & {"QueueDeletedRecently"}:
            return DeletedRecently(queue), False
        if names & {"QueueNameExists", "QueueAlreadyExists"}:
            return QueueExists(queue), False
        if names & _CLOCK or (names & _CREDENTIALS and _is_about_time(text)):
            return AccessDenied(
                f"{self.place} refuses the time of this machine's clock ({time.strftime('%Y-%m-%d %H:%M:%S %Z')}): "
                f"set the clock, as by NTP. SQS says: {text}"
            ), False
        if names & _CREDENTIALS:
            return AccessDenied(
                f"{self.place} refuses the credentials ({code}): check KEY and SECRET in the URL, or the AWS_ "
                "environment, profile or role, and whether they have expired"
            ), False
        if names & _RIGHTS:
            return self._no_right(operation, queue), False
        if names & _AGAIN or status >= 500:
            return BrokerUnavailable(f"{self.place} is out of order or busy ({code}): try again later"), True
        if code == "BatchRequestTooLong" or "must be shorter than" in text:
            return PayloadTooLarge(
                f"queue {queue} refuses a message for its size: {text} Raise its MaximumMessageSize, or lower "
                "max_message in the URL so that larger data goes through the results backend"
            ), False
        return Refused(f"{operation} of {queue or self.place}: {code}: {text}", code), False

    def _no_right(self, operation: str, queue: str) -> AccessDenied:
        action = "sqs:" + "".join(word.title() for word in operation.removesuffix("_batch").split("_"))
        hint = ""
        if operation == "create_queue":
            hint = f"; or have the queue made, and name it: sqs://…?predefined_queues=NAME=https://…/{queue or 'NAME'}"
        denied = AccessDenied(
            f"the credentials for {self.place} lack the right {action} on {queue or '*'}: allow it{hint}"
        )
        denied.code = "AccessDenied"  # type: ignore[attr-defined]
        return denied


# What no repetition mends.
_FINAL = (
    aws.NoRegionError,
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.ProfileNotFound,
    aws.ParamValidationError,
    aws.SSOError,
    ValueError,
)


def _is_about_time(text: str) -> bool:
    """Whether a refused signature was refused for its date."""
    return any(word in text for word in ("Signature expired", "not yet current", "too skewed", "Request has expired"))


def chunks(entries: Iterable[tuple[Any, int]], size: int, count: int = 10) -> list[list[Any]]:
    """Entries (with their sizes) in batches of at most `count`, and together at most `size`."""
    made: list[list[Any]] = []
    total = 0
    for entry, length in entries:
        if not made or len(made[-1]) == count or total + length > size:
            made.append([])
            total = 0
        made[-1].append(entry)
        total += length
    return made
