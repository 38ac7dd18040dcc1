"""Send vCons to other lists by their tags.

Each vCon that has a tag of a name in `tag_routes` is pushed to the list beside it, whatever the tag's value. A list
gets it once, however many of its tags lead there. The pushes are made in one step with the end of the chain: a chain
that fails afterwards has pushed nothing, and one that is run again after a crash pushes once.

All attachments with the purpose (or type) `tags` count, whatever their shape. The tags of a signed or encrypted vCon
cannot be seen, so it matches no route.

Reads: tags. Writes: nothing; the UUID goes to other lists.
"""

import logging

from pydantic import BaseModel, Field

from conserver import push, telemetry, vcons

log = logging.getLogger(__name__)


class Options(BaseModel):
    """Which tag leads where."""

    tag_routes: dict[str, str] = Field(
        default={}, description="Name of a tag -> the list that vCons with this tag are pushed to."
    )
    forward_original: bool = Field(
        default=True,
        description="Whether the vCon goes on in this chain as well. Without any `tag_routes` it always does.",
    )


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Push the vCon to the lists of its tags."""
    if not opts.tag_routes:
        log.debug("link %s has no tag_routes, so every vCon just goes on", link_name)
        return vcon_uuid
    names = {tag.partition(":")[0] for tag in vcons.get(vcon_uuid).tags}
    lists = dict.fromkeys(target for name, target in opts.tag_routes.items() if name in names)
    for target in lists:
        push(target, vcon_uuid)
        telemetry.count("conserver.link.tag_router.routes_matched", link=link_name, route=target)
    if lists:
        telemetry.count("conserver.link.tag_router.routed_count", len(lists), link=link_name)
    return vcon_uuid if opts.forward_original else None
