"""celery: acknowledges late, so after the task, as somebody would who does not want to lose any."""

import counted
from celery import Celery

app = Celery("app_celery", broker=counted.URL)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task
def no_op(sent):
    counted.done(sent)


def enqueue(tasks):
    with app.producer_pool.acquire(block=True) as producer:
        for sent in tasks:
            no_op.apply_async((sent,), producer=producer)
