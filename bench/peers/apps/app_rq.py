"""rq: moves the id of a job to an intermediate list, then to a registry of those that run; a job is a hash."""

import counted
from redis import Redis
from rq import Queue


def no_op(sent):
    counted.done(sent)


def enqueue(tasks):
    queue = Queue("bench", connection=Redis.from_url(counted.URL))
    for sent in tasks:
        queue.enqueue(no_op, sent, result_ttl=0)
