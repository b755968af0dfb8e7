"""``python -m opd.serving.emulation FILE`` serves until it is stopped; the file holds :class:`EmulationSettings`."""

from opd.serving.emulation.server import precise_event_loop, serve
from opd.serving.emulation.settings import EmulationSettings
from opd.serving.starting import run_server

run_server(EmulationSettings, serve, precise_event_loop)
