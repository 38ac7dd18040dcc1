"""A storage that keeps vCons in a dict of its process, and in a list of the server what it was asked."""

import redis_mgr
from lib.vcon_redis import VconRedis

default_options = {"name": "acme"}

kept = {}


def save(vcon_uuid, opts):
    kept[vcon_uuid] = VconRedis().get_vcon(vcon_uuid).to_dict()
    redis_mgr.redis.rpush("acme:archived", f"{opts['name']} {vcon_uuid}")


def get(vcon_uuid, opts):
    return kept.get(vcon_uuid)


def delete(vcon_uuid, opts):
    return kept.pop(vcon_uuid, None) is not None
