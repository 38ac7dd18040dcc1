"""FastAPI with nothing behind it: `python -m bench.bare_api PORT` shows what an API costs that does no work.

GET /SIZE/ANY answers a vCon of that size that was written before; POST /ANY answers its body.
"""

from __future__ import annotations

import functools
import sys

import uvicorn
from fastapi import FastAPI, Request, Response

from bench import vcons

app = FastAPI()


@app.get("/{size}/{uuid}")
async def read(size: int, uuid: str) -> Response:
    """Answer the same bytes each time."""
    return Response(_document(size), media_type="application/json")


@app.post("/{name}")
async def create(name: str, request: Request) -> Response:
    """Answer what was sent."""
    return Response(await request.body(), 201, media_type="application/json")


@functools.cache
def _document(size: int) -> bytes:
    return next(vcons.documents(size, 1))[1]


if __name__ == "__main__":
    # As `conserver api` has it, so that the difference is all ours.
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
