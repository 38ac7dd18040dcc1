"""Publish each vCon to a stream of NATS JetStream, for programs that take it from there.

    {subject}     one message for each vCon, vcons.{uuid}: the vCon as JSON, or its UUID

A save counts when the stream has acknowledged the message. In a stream that is made here, a later version takes the
place of the earlier one. The message of a version has the same `Nats-Msg-Id` whenever it is saved, so that the stream
drops it when it comes again within its `duplicate_window`; but where that is not the last message of its subject any
more, since another version was saved or the vCon was deleted in between, it is published once more.

A stream gives up messages by its own rules: their age, its size, or that somebody has taken them. Copies in Redis may
expire as soon as a storage says that it can give a vCon back, so this one does not: there is no `get`.

Reads: the whole vCon. Writes: nothing; a message with the vCon goes to NATS.
Needs: conserver[nats].
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from pydantic import Field, field_validator

from conserver import StorageError, outbound, telemetry, vcons

from .jetstream import JetStream, Refusal, run
from .server import NoStream, Server

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", re.ASCII)
# All that is printed but what NATS reads as a pattern, and braces, which could be meant for another placeholder.
_TOKEN = re.compile(r"[!-)+-=?-z|~]+")
# What stands for all vCons where one has to be named.
_NOBODY = str(UUID(int=0))

_NAME_IN_USE = 10058
_NO_MESSAGE = 10037
_STREAM_NOT_FOUND = 10059


class Options(Server):
    """Which stream, what goes there, and how to get in."""

    stream: str = Field(default="VCONS", pattern=r"^[^\s.*>/\\]+$", description="The stream.")
    subject: str = Field(
        default="vcons.{uuid}", description="The subject of a vCon's message; `{uuid}` is one of its tokens."
    )
    payload: Literal["vcon", "uuid"] = Field(
        default="vcon", description="What the message holds: the vCon, or its UUID, by which the API gives it."
    )
    format_version: Literal["0.0.1"] | None = Field(
        default=None,
        description="Version of the vCons as they are sent; without it, the current one, whatever "
        "`EGRESS_FORMAT_VERSION` says.",
    )
    create_stream: bool = Field(default=True, description="Whether the stream is made if no stream takes the subject.")
    replicas: int = Field(default=1, ge=1, le=5, description="How many servers keep the stream that is made here.")

    @field_validator("subject")
    @classmethod
    def _has_the_uuid(cls, subject: str) -> str:
        parts = subject.split(".")
        others = [part for part in parts if part != "{uuid}"]
        # One at least beside the UUID: the stream that is made must not take all that has no dots.
        if not others or len(others) + 1 != len(parts) or not all(map(_TOKEN.fullmatch, others)):
            raise ValueError("must be tokens with dots between them, one of them {uuid}, such as vcons.{uuid}")
        if subject.startswith("$"):
            raise ValueError("must not begin with $: such subjects belong to NATS itself")
        return subject

    def subject_of(self, vcon_uuid: str) -> str:
        """Return the subject of a vCon, or of all of them for `*`."""
        return self.subject.replace("{uuid}", vcon_uuid)

    @property
    def where(self) -> str:
        """The stream as messages show it."""
        return f"stream {self.stream} at {self.address}"


def save(vcon_uuid: str, opts: Options) -> None:
    """Publish the vCon; it is saved when the stream has acknowledged it."""
    _check_uuid(vcon_uuid)
    vcon = vcons.get(vcon_uuid)
    text = vcons.egress(vcon, opts.format_version) if opts.format_version else vcon.to_bytes()
    subject = opts.subject_of(vcon_uuid)
    headers = {
        "Content-Type": "application/vcon+json" if opts.payload == "vcon" else "text/plain",
        "Vcon-Uuid": vcon_uuid,
        "Nats-Msg-Id": outbound.delivery_id(subject, opts.payload, hashlib.sha256(text).hexdigest()),
        "Nats-Expected-Stream": opts.stream,
    }
    if isinstance(version := vcon.document.get("vcon"), str):  # signed and encrypted ones do not say it
        headers["Vcon-Version"] = opts.format_version or version
    if chain := telemetry.fields().get("chain"):
        headers |= {"Conserver-Chain": chain, "Conserver-Outcome": "processed"}
    message = _Message(subject, text if opts.payload == "vcon" else vcon_uuid.encode(), headers)
    run(f"publish vCon {vcon_uuid} to {opts.where}", opts, lambda jetstream: message.publish(jetstream, opts))


def delete(vcon_uuid: str, opts: Options) -> bool | None:
    """Purge the messages of the vCon; None if the answer to an earlier attempt was lost, and now there are none."""
    _check_uuid(vcon_uuid)
    attempts = 0

    def purge(jetstream: JetStream) -> bool | None:
        nonlocal attempts
        attempts += 1
        try:
            answer = jetstream.ask(f"STREAM.PURGE.{opts.stream}", {"filter": opts.subject_of(vcon_uuid)})
        except Refusal as refusal:
            if refusal.number == _STREAM_NOT_FOUND:
                return False
            raise
        if answer.get("purged"):
            return True
        return False if attempts == 1 else None

    return run(f"purge vCon {vcon_uuid} from {opts.where}", opts, purge)


def ping(opts: Options) -> None:
    """Raise StorageError if there is no stream for vCons; it is made, if it may be."""
    run(f"publish to {opts.where}", opts, lambda jetstream: _find_or_make_stream(jetstream, opts))


@dataclass
class _Message:
    """A message on its way into the stream."""

    subject: str
    body: bytes
    headers: dict[str, str]
    was_sent: bool = False

    def publish(self, jetstream: JetStream, opts: Options) -> None:
        """Publish it; what an earlier attempt of this save has published is not published again."""
        # Before, since nobody says that there is no stream where somebody else listens to the subject.
        if opts.create_stream and not jetstream.has_stream:
            _find_or_make_stream(jetstream, opts)
        was_sent, self.was_sent = self.was_sent, True
        try:
            sequence, is_duplicate = self._send(jetstream, opts)
        except NoStream:
            if not opts.create_stream:
                raise
            _find_or_make_stream(jetstream, opts)
            sequence, is_duplicate = self._send(jetstream, opts)
        if is_duplicate and not was_sent and not self._is_last(jetstream, opts, sequence):
            self.headers["Nats-Msg-Id"] += f"-{secrets.token_hex(4)}"
            self._send(jetstream, opts)

    def _send(self, jetstream: JetStream, opts: Options) -> tuple[int, bool]:
        """Publish it; return its number in the stream, and whether it was there before."""
        answer = jetstream.publish(self.subject, self.body, self.headers)
        sequence = answer.get("seq")
        if answer.get("stream") != opts.stream or not isinstance(sequence, int):
            raise StorageError(f"what answers on subject {self.subject} is not the stream")
        return sequence, bool(answer.get("duplicate"))

    def _is_last(self, jetstream: JetStream, opts: Options, sequence: int) -> bool:
        try:
            answer = jetstream.ask(f"STREAM.MSG.GET.{opts.stream}", {"last_by_subj": self.subject})
        except Refusal as refusal:
            if refusal.number == _NO_MESSAGE:
                return False
            raise
        message = answer.get("message")
        return isinstance(message, dict) and message.get("seq") == sequence


def _find_or_make_stream(jetstream: JetStream, opts: Options) -> None:
    names = jetstream.ask("STREAM.NAMES", {"subject": opts.subject_of(_NOBODY)}).get("streams") or []
    subjects = opts.subject_of("*")
    if opts.stream not in names:
        if names:
            raise StorageError(f"subject {subjects} belongs to stream {names[0]}: name that, or choose another subject")
        if not opts.create_stream:
            raise StorageError(f"it does not take subject {subjects}: make the stream so, or set create_stream")
        _make_stream(jetstream, opts, subjects)
    jetstream.has_stream = True


def _make_stream(jetstream: JetStream, opts: Options, subjects: str) -> None:
    config = {
        "name": opts.stream,
        "description": "vCons of the conserver",
        "subjects": [subjects],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "num_replicas": opts.replicas,
        "allow_direct": True,
    }
    try:
        jetstream.ask(f"STREAM.CREATE.{opts.stream}", config)
    except Refusal as refusal:
        if refusal.number == _NAME_IN_USE:
            raise StorageError(f"the stream is there, but does not take subject {subjects}: add that to it") from None
        raise


def _check_uuid(vcon_uuid: str) -> None:
    if not _UUID.fullmatch(vcon_uuid):
        raise StorageError(f"{vcon_uuid[:80]!r} is no UUID, so it can be no token of a subject")
