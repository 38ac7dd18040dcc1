"""dramatiq: moves ids of messages to a set of its own in batches, and acknowledges each after its task."""

import counted
import dramatiq
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=counted.URL))


@dramatiq.actor
def no_op(sent):
    counted.done(sent)


def enqueue(tasks):
    for sent in tasks:
        no_op.send(sent)
