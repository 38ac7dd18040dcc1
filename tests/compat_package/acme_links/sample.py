"""Adds an attachment with data of the options."""

from server.lib.logging_utils import init_logger
from server.lib.metrics import init_metrics
from server.lib.vcon_redis import VconRedis

init_metrics()

logger = init_logger(__name__)

default_options = {"attachment_type": "custom_data", "custom_data": {}}


def run(vcon_uuid, link_name, opts=None):
    opts = {**default_options, **(opts or {})}
    logger.info("Running link %s", link_name, extra={"link_name": link_name})
    vcon_redis = VconRedis()
    vcon = vcon_redis.get_vcon(vcon_uuid)
    vcon.add_attachment(body=opts["custom_data"], type=opts["attachment_type"], encoding="none")
    vcon_redis.store_vcon(vcon)
    return vcon_uuid
