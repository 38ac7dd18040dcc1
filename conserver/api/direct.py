"""Routes whose handlers get the request and nothing else.

To find out what a handler wants, and to bring it, is most of what FastAPI does for a small request, and more than all
that the store does. So what most requests ask for reads its parameters itself, and says what they are by hand.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route of `APIRouter(route_class=DirectRoute)`; its handler checks the access of the caller itself."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that has matched."""
        if self.methods and scope["method"] not in self.methods:
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
