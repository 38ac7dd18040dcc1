"""What is asked of the server: vCons by their id, parts by a search, and indexes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from conserver import outbound
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Answer, Backoff, Retryable

from . import bulk
from .asking import ask, error_type, objects, strange
from .bulk import Outcome
from .options import Options
from .parts import DOCUMENTS_INDEX, PARTS_INDEX, Part, Place, documents_index, listed, named, patterns

_MOST_FOUND = 10_000
_PAGE = 1000
# Where the server has made the index by itself, `vcon_id` is a text, by which it cannot sort; nor can it by `_id`.
_SORTED_BY = "vcon_id.keyword"
_MISSING = "index_not_found_exception"
_HEAD = ["generation", "save", "parts"]


@dataclass(frozen=True)
class Known:
    """The document of a vCon as it is stored; `seq_no` and `term` say which write made it."""

    generation: int
    save: str
    places: frozenset[Place]
    text: str | None
    seq_no: int
    term: int

    @property
    def unchanged(self) -> str:
        """The parameters of a write that must not meet another one."""
        return f"if_seq_no={self.seq_no}&if_primary_term={self.term}"


class Server:
    """The server of some options."""

    def __init__(self, opts: Options) -> None:
        self._opts = opts
        self._documents = documents_index(opts.index_prefix)
        self._parts = ",".join(quote(name, safe="*") for name in patterns(opts.index_prefix))

    def look(
        self, vcon_uuid: str, indexes: Iterable[str] = (), *, text: bool = False
    ) -> tuple[Known | None, frozenset[str]]:
        """Return what there is of the vCon, with its *text* if that is wanted, and which indexes are missing.

        Other than a search this sees what was written a moment ago.
        """
        wanted: list[dict[str, Any]] = [
            {"_index": self._documents, "_id": vcon_uuid, "_source": [*_HEAD, "text"] if text else _HEAD}
        ]
        wanted += [{"_index": index, "_id": f"{vcon_uuid}_0", "_source": False} for index in sorted(indexes)]
        body = json.dumps({"docs": wanted}).encode()

        def attempt() -> tuple[Known | None, frozenset[str]]:
            answer = ask(self._opts, "POST", "/_mget", body)
            found = objects(answer, "docs", count=len(wanted))
            errors = [error_type(one) for one in found]
            if errors[0] == "security_exception":
                raise OutboundStatus(f"{answer.source}: index {self._documents}: {errors[0]}", 403)
            if errors[0] not in ("", _MISSING):
                # As one of which no copy can be asked at this moment.
                raise Retryable(f"{answer.source}: index {self._documents}: {errors[0]}")
            missing = frozenset(one["_index"] for one, error in zip(wanted, errors, strict=True) if error == _MISSING)
            return (None if errors[0] else self._known(found[0], vcon_uuid, answer)), missing

        return outbound.retrying(f"documents at {self._opts.address}", attempt, Backoff(total_secs=self._opts.timeout))

    def make(self, missing: Iterable[str]) -> None:
        """Make indexes that are not there."""
        refused: list[tuple[str, OutboundStatus]] = []
        for index in sorted(missing):
            like = DOCUMENTS_INDEX if index == self._documents else PARTS_INDEX
            try:
                ask(self._opts, "PUT", f"/{quote(index, safe='')}", json.dumps(like).encode())
            except OutboundStatus as error:
                if error.status != 400:
                    raise
                refused.append((index, error))
        if refused:
            # Somebody else may have been faster.
            _, still = self.look("ping", [index for index, _ in refused])
            for index, refusal in refused:
                if index in still:
                    raise OutboundStatus(f"{refusal}; index {index} cannot be made", refusal.status) from refusal

    def find(self, vcon_uuid: str) -> frozenset[Place]:
        """Return where a search finds parts of the vCon, whoever wrote them."""
        query = {"size": _MOST_FOUND, "_source": False, "query": _query(vcon_uuid)}
        path = (
            f"/{self._parts}/_search?ignore_unavailable=true&allow_no_indices=true&allow_partial_search_results=false"
        )
        answer = ask(self._opts, "POST", path, json.dumps(query).encode())
        return frozenset(_places(objects(answer, "hits", "hits"), vcon_uuid))

    def uuids(self, after: str) -> Iterator[str]:
        """Yield the UUIDs behind *after* of all vCons that have a document, in order."""
        if self.look("ping")[1]:
            return  # the index for them is missing
        name = f"/{quote(self._documents, safe='')}"
        answer = ask(self._opts, "POST", f"{name}/_refresh")
        if not _is_whole(answer):
            raise OutboundError(
                f"{answer.source}: index {self._documents} could not be refreshed, so vCons may be missing"
            )
        while True:
            query: dict[str, Any] = {"size": _PAGE, "_source": False, "sort": [{_SORTED_BY: "asc"}]}
            query |= {"search_after": [after]} if after else {}
            path = f"{name}/_search?allow_partial_search_results=false"
            answer = ask(self._opts, "POST", path, json.dumps(query).encode())
            hits = objects(answer, "hits", "hits")
            for hit in hits:
                vcon_uuid = _sorted_as(hit, answer)
                if vcon_uuid is None:
                    return  # this and all that follow are none of ours
                if vcon_uuid < after:
                    raise strange(answer)
                after = vcon_uuid
                if hit.get("_id") == vcon_uuid:
                    yield vcon_uuid
            if len(hits) < _PAGE:
                return

    def put(self, vcon_uuid: str, document: bytes, before: Known | None) -> Known | None:
        """Write the document over the one that was there *before*; None if there is another one by now."""
        name = f"/{quote(self._documents, safe='')}"
        uuid = quote(vcon_uuid, safe="")
        path = f"{name}/_doc/{uuid}?{before.unchanged}" if before else f"{name}/_create/{uuid}"
        try:
            answer = ask(self._opts, "PUT", path, document, quote_answer=False)
        except OutboundStatus as error:
            if error.status != 409:
                raise
            return None
        said = answer.json()
        try:
            return Known(0, "", frozenset(), None, int(said["_seq_no"]), int(said["_primary_term"]))
        except (KeyError, TypeError, ValueError):
            raise strange(answer) from None

    def forget(self, vcon_uuid: str, places: Iterable[Place], written: Known) -> None:
        """Let the document that was *written* name these places alone, unless there is another one by now."""
        path = f"/{quote(self._documents, safe='')}/_update/{quote(vcon_uuid, safe='')}?{written.unchanged}"
        try:
            ask(self._opts, "POST", path, json.dumps({"doc": {"parts": listed(places)}}).encode(), quote_answer=False)
        except OutboundStatus as error:
            if error.status not in (404, 409):
                raise

    def remove(self, vcon_uuid: str, known: Known) -> bool:
        """Delete the document; False if there is another one by now."""
        path = f"/{quote(self._documents, safe='')}/_doc/{quote(vcon_uuid, safe='')}?refresh=true&{known.unchanged}"
        try:
            ask(self._opts, "DELETE", path)
        except OutboundStatus as error:
            if error.status == 409:
                return False
            if error.status != 404:
                raise
        return True

    def try_to_write(self) -> None:
        """Delete a document that is not there."""
        try:
            ask(self._opts, "DELETE", f"/{quote(self._documents, safe='')}/_doc/ping")
        except OutboundStatus as error:
            if error.status != 404:
                raise

    def remove_found(self, vcon_uuid: str) -> tuple[int, bool]:
        """Delete what a search finds; return how many, and whether all of it."""
        ask(self._opts, "POST", f"/{self._parts}/_refresh?ignore_unavailable=true&allow_no_indices=true")
        how = "conflicts=proceed&refresh=true&ignore_unavailable=true&allow_no_indices=true"
        query = json.dumps({"query": _query(vcon_uuid)}).encode()
        answer = ask(self._opts, "POST", f"/{self._parts}/_delete_by_query?{how}", query)
        said = answer.json()
        if not isinstance(said, dict) or not isinstance(said.get("deleted"), int):
            raise strange(answer)
        if said.get("failures") or said.get("timed_out"):
            raise OutboundError(f"{answer.source}: some documents of indexes {self._parts} could not be deleted")
        return said["deleted"], not said.get("version_conflicts")

    def write(self, vcon_uuid: str, generation: int, removed: Iterable[Place], parts: Iterable[Part]) -> Outcome:
        """Delete parts and write others; what is newer than *generation* stays as it is."""
        removed = set(removed)
        # A deletion of this kind would make an index that is not there, and not as we do.
        gone = self.look(vcon_uuid, {place.index for place in removed})[1] if removed else ()
        return bulk.write(
            self._opts, vcon_uuid, generation, {place for place in removed if place.index not in gone}, parts
        )

    def _known(self, found: dict[str, Any], vcon_uuid: str, answer: Answer) -> Known | None:
        if found.get("_id") != vcon_uuid or not isinstance(found.get("found"), bool):
            raise strange(answer)
        if not found["found"]:
            return None
        source, seq_no, term = found.get("_source"), found.get("_seq_no"), found.get("_primary_term")
        if not isinstance(source, dict) or not isinstance(seq_no, int) or not isinstance(term, int):
            raise strange(answer)
        generation, text = source.get("generation"), source.get("text")
        return Known(
            generation if isinstance(generation, int) else 0,
            str(source.get("save")),
            named(source.get("parts"), self._opts.index_prefix),
            "".join(map(str, text)) if isinstance(text, list) else None,
            seq_no,
            term,
        )


def _query(vcon_uuid: str) -> dict[str, Any]:
    # In indexes that the server made by itself `vcon_id` is a text in pieces, of which other vCons have some, too.
    names = ("vcon_id", "vcon_id.keyword")
    return {"bool": {"should": [{"term": {name: vcon_uuid}} for name in names], "minimum_should_match": 1}}


def _sorted_as(hit: dict[str, Any], answer: Answer) -> str | None:
    """Return by what a hit was sorted, None if it has nothing of that name."""
    values = hit.get("sort")
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], str | None):
        raise strange(answer)
    return values[0]


def _is_whole(answer: Answer) -> bool:
    said = answer.json()
    shards = said.get("_shards") if isinstance(said, dict) else None
    return isinstance(shards, dict) and shards.get("failed") == 0


def _places(hits: list[dict[str, Any]], vcon_uuid: str) -> Iterator[Place]:
    for hit in hits:
        uuid, _, position = str(hit.get("_id")).rpartition("_")
        if uuid == vcon_uuid and position.isascii() and position.isdecimal():
            yield Place(str(hit.get("_index")), int(position))
