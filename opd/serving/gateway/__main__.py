"""``python -m opd.serving.gateway FILE`` serves until it is stopped; the file holds :class:`GatewaySettings`."""

from opd.serving.gateway.server import serve
from opd.serving.settings import GatewaySettings
from opd.serving.starting import run_server

run_server(GatewaySettings, serve)
