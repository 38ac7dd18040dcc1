"""Does everything once, by the names `server.lib.*`."""

# ruff: noqa: F401  members.py uses what is imported here

import server.lib.metrics
from server import config, dlq_utils, redis_mgr, settings, version
from server.lib import (
    ai_usage,
    context_utils,
    dialog_body,
    error_tracking,
    listen_list,
    openai_client,
    phone_number_utils,
    process_utils,
    queue_metrics,
    redaction,
    tracing,
)
from server.lib.links import filters
from server.lib.logging_utils import init_logger
from server.lib.queue import VconQueue
from server.lib.vcon_compat import normalize_legacy_fields
from server.lib.vcon_egress_compat import SUPPORTED_VERSIONS, to_configured_legacy, to_legacy
from server.lib.vcon_redis import VconRedis
from server.storage.base import Storage, log_metrics
from server.vcon import Vcon

from acme_links import members

logger = init_logger(__name__)
metrics = server.lib.metrics
server.lib.metrics.init_metrics()

default_options = {"usage_url": "", "ttl": 3000}


def run(vcon_uuid, link_name, opts=default_options):
    from server.lib.logging_utils import init_logger as late_import

    late_import(__name__).info("running", extra={"acme_extra": "seen"})
    return members.run(globals(), vcon_uuid, link_name, {**default_options, **opts})
