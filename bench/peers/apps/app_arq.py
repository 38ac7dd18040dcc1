"""arq: looks at its sorted set now and then, runs what it finds as coroutines, and removes each after its task."""

import asyncio

import counted
import uvloop
from arq import create_pool
from arq.connections import RedisSettings

SERVER = RedisSettings.from_dsn(counted.URL)
QUIET = {"version": 1, "disable_existing_loggers": False}

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def no_op(ctx, sent):
    counted.done(sent)


class Default:
    functions = (no_op,)
    redis_settings = SERVER
    keep_result = 0


class Tuned:  # arq does not look at the bases of a class
    functions = (no_op,)
    redis_settings = SERVER
    keep_result = 0
    poll_delay = 0.02
    max_jobs = 100


def enqueue(tasks):
    async def go():
        pool = await create_pool(SERVER)
        for sent in tasks:
            await pool.enqueue_job("no_op", sent)

    asyncio.run(go())
