"""Errors of an HTTP server as answers, those of the Open Inference Protocol: a status and ``{"error": message}``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import ValidationError

from opd.host.documents import DocumentError
from opd.serving.protocol import ServingError

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error: 400 for a document that is not as it should be, 500 for what nobody expected."""
    try:
        return await handler(request)
    except ServingError as error:
        status, message = error.http_status, str(error)
    except (DocumentError, ValidationError) as error:
        status, message = 400, str(error)
    except web.HTTPException as error:
        status, message = error.status, error.text or error.reason
    except Exception as error:  # no error may end a call without a reason
        logger.exception("%s %s failed", request.method, request.path)
        status, message = 500, f"the server failed: {error}"
    return web.json_response({"error": message}, status=status)
