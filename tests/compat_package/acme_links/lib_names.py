"""Does everything once, by the names `lib.*`."""

# ruff: noqa: F401  members.py uses what is imported here

import config
import dlq_utils
import lib.metrics
import redis_mgr
import settings
import version
from lib import (
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
from lib.links import filters
from lib.logging_utils import init_logger
from lib.queue import VconQueue
from lib.vcon_compat import normalize_legacy_fields
from lib.vcon_egress_compat import SUPPORTED_VERSIONS, to_configured_legacy, to_legacy
from lib.vcon_redis import VconRedis
from storage.base import Storage, log_metrics
from vcon import Vcon

from acme_links import members

logger = init_logger(__name__)
metrics = lib.metrics
lib.metrics.init_metrics()

default_options = {"usage_url": "", "ttl": 3000}


def run(vcon_uuid, link_name, opts=default_options):
    from lib.logging_utils import init_logger as late_import

    late_import(__name__).info("running", extra={"acme_extra": "seen"})
    return members.run(globals(), vcon_uuid, link_name, {**default_options, **opts})
