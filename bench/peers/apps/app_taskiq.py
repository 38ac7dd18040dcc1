"""taskiq: a stream whose entries are acknowledged after the task, or a list whose entries are popped before it."""

import asyncio

import counted
from taskiq_redis import ListQueueBroker, RedisStreamBroker

if "Stream" in counted.VARIANT:
    broker = RedisStreamBroker(url=counted.URL, consumer_id="0")  # 0: also what was there before the workers
else:
    broker = ListQueueBroker(url=counted.URL)


@broker.task
async def no_op(sent: float) -> None:
    counted.done(sent)


def enqueue(tasks):
    async def go():
        await broker.startup()
        for sent in tasks:
            await no_op.kiq(sent)
        await broker.shutdown()

    asyncio.run(go())
