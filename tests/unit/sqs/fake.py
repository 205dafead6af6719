"""A server that answers requests of SQS with errors as AWS words them, by operation; everything else succeeds."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What AWS says, word for word where it matters.
ERRORS: dict[str, tuple[int, str, str]] = {
    "key": (403, "com.amazon.coral.service#UnrecognizedClientException", "The security token is invalid."),
    "secret": (403, "com.amazon.coral.service#InvalidSignatureException",
               "The request signature we calculated does not match the signature you provided."),
    "clock": (403, "com.amazon.coral.service#InvalidSignatureException",
              "Signature expired: 20260101T000000Z is now earlier than 20261123T000000Z (20261123T001500Z - 15 min.)"),
    "expired": (403, "com.amazon.coral.service#ExpiredTokenException", "The security token is expired"),
    "right": (403, "com.amazon.coral.service#AccessDeniedException",
              "User: arn:aws:iam::1:user/x is not authorized to perform this action"),
    "gone": (400, "com.amazonaws.sqs#QueueDoesNotExist", "The specified queue does not exist."),
    "recently": (400, "com.amazonaws.sqs#QueueDeletedRecently", "You must wait 60 seconds after deleting a queue"),
    "busy": (400, "com.amazonaws.sqs#RequestThrottled", "The request was denied due to request throttling."),
    "down": (503, "com.amazonaws.sqs#ServiceUnavailable", ""),
    "size": (400, "com.amazonaws.sqs#InvalidParameterValueException",
             "One or more parameters are invalid. Reason: Message must be shorter than 262144 bytes."),
}  # fmt: skip


class FakeSqs:
    """`says` has, by operation, an error's name or an answer; a list of them is used up one by one."""

    def __init__(self) -> None:
        self.says: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                status, answer = fake.answer(self.headers["X-Amz-Target"].rpartition(".")[2], body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.0")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def url(self, more: str = "") -> str:
        return f"sqs://AKIDKEY:s3cretWord@127.0.0.1:{self.port}/?region=eu-west-1{more}"

    def count(self, operation: str) -> int:
        return Counter(name for name, _ in self.asked)[operation]

    def answer(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append((operation, body))
        says = self.says.get(operation)
        if isinstance(says, list):
            says = says.pop(0) if says else None
        if isinstance(says, str):
            status, kind, text = ERRORS[says]
            return status, {"__type": kind, "message": text}
        if isinstance(says, dict):
            return 200, says
        base = f"http://127.0.0.1:{self.port}/1/"
        entries = [{"Id": entry["Id"]} for entry in body.get("Entries", ())]
        sent = [{**entry, "MessageId": "m", "MD5OfMessageBody": "0"} for entry in entries]
        return 200, {
            "CreateQueue": {"QueueUrl": base + body.get("QueueName", "")},
            "GetQueueUrl": {"QueueUrl": base + body.get("QueueName", "")},
            "GetQueueAttributes": {"Attributes": {"QueueArn": "arn:aws:sqs:eu-west-1:1:x"}},
            "SendMessageBatch": {"Successful": sent, "Failed": []},
        }.get(operation, {"Successful": entries, "Failed": []} if entries else {})


@contextmanager
def fake_sqs() -> Iterator[FakeSqs]:
    """One that serves."""
    fake = FakeSqs()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        thread.join()
