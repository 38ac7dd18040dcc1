"""The embedding of a text, from any service that speaks OpenAI's protocol."""

import json
import math
from typing import Any

from conserver import models, outbound
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Answer, Backoff, Limits

from .options import Options

# So short a text is not too long for any model: what is refused then has another reason.
_SHORT = 1000
_TOO_LONG = (400, 413, 422)
_CURES = {
    400: "check embedding_model",
    401: "check the key in the options",
    403: "check the key in the options",
    404: "check embedding_model, and base_url if it is set",
}


def embed(text: str, opts: Options, *, vcon_uuid: str) -> list[float]:
    """Return the embedding of a text; raises OutboundError if there is none.

    Models take texts up to a length of their own. What a service refuses as it is, is embedded in two halves, and
    these again; the embedding of the whole is then their mean, by length.
    """
    try:
        return _embed(text, opts, vcon_uuid)
    except OutboundStatus as error:
        if error.status not in _TOO_LONG or len(text) <= _SHORT:
            raise
    halves = _halves(text)
    vectors = [embed(half, opts, vcon_uuid=vcon_uuid) for half in halves]
    return _mean(vectors, [len(half) for half in halves])


def _halves(text: str) -> tuple[str, str]:
    middle = len(text) // 2
    space = text.rfind(" ", middle // 2, middle)
    at = space + 1 or middle
    return text[:at], text[at:]


def _mean(vectors: list[list[float]], weights: list[int]) -> list[float]:
    whole = sum(weights)
    shares = [weight / whole for weight in weights]
    mean = [
        sum(share * number for share, number in zip(shares, row, strict=True)) for row in zip(*vectors, strict=True)
    ]
    # As long as they are: services give vectors of the length 1, and distances count on that.
    length = sum(share * math.hypot(*vector) for share, vector in zip(shares, vectors, strict=True))
    factor = length / (math.hypot(*mean) or 1.0)
    return [number * factor for number in mean]


def _embed(text: str, opts: Options, vcon_uuid: str) -> list[float]:
    url, headers = models.endpoint(opts, "embeddings")
    try:
        answer = outbound.request(
            "POST",
            url,
            trusted=True,
            headers={**headers, "Content-Type": "application/json", "Accept": "application/json"},
            body=json.dumps({"model": opts.model, "input": text}).encode(),
            limits=Limits(read_secs=opts.timeout, total_secs=opts.timeout),
            backoff=Backoff(
                attempts=6,
                wait_secs=1.0,
                max_wait_secs=65.0,
                total_secs=opts.retry_secs,
                statuses=frozenset({408, 409, 429, 500, 502, 503, 504}),
            ),
            repeatable=True,  # nothing changes there
            quote_answer=False,  # services like to repeat what they were sent, and parts of the key
        )
    except OutboundStatus as error:
        cure = _CURES.get(error.status)
        raise OutboundStatus(f"{error}{f'; {cure}' if cure else ''}", error.status) from None
    found = answer.json()
    _account(found, opts, vcon_uuid)
    return _vector(found, answer, opts.embedding_dim)


def _vector(found: Any, answer: Answer, dimensions: int) -> list[float]:
    try:
        vector = [float(number) for number in found["data"][0]["embedding"]]
    except (LookupError, TypeError, ValueError, OverflowError):
        raise OutboundError(f"{answer.source}: the answer is no embedding") from None
    if len(vector) != dimensions:
        message = f"the embedding has {len(vector)} numbers, but embedding_dim is {dimensions}"
        raise OutboundError(f"{answer.source}: {message}; give the one that belongs to embedding_model")
    if not all(map(math.isfinite, vector)) or not any(vector):
        raise OutboundError(f"{answer.source}: the embedding says nothing: its numbers are all 0, or not finite")
    return vector


def _account(found: Any, opts: Options, vcon_uuid: str) -> None:
    """Count and report what one request cost."""
    usage = found.get("usage") if isinstance(found, dict) else None
    spent = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    cost = models.ChatResult("", spent if isinstance(spent, int) and spent > 0 else 0, 0)
    models.count_tokens(opts, cost)
    models.report_usage(opts, cost, vcon_uuid=vcon_uuid, sub_type="MILVUS_EMBEDDING")
