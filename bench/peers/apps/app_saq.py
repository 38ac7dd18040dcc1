"""saq: moves the id of a job to a list of active ones, and runs jobs as coroutines."""

import asyncio

import counted
import uvloop
from saq import Queue

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
queue = Queue.from_url(counted.URL)


async def no_op(ctx, *, sent):
    counted.done(sent)


settings = {"queue": queue, "functions": [no_op], "concurrency": int(counted.VARIANT.split()[-1])}


def enqueue(tasks):
    async def go():
        await queue.connect()
        for sent in tasks:
            await queue.enqueue("no_op", sent=sent, ttl=-1)  # -1 keeps no result
        await queue.disconnect()

    asyncio.run(go())
