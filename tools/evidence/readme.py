"""Claims of ``README.md`` and of the help of the ``Makefile``: what commands take."""

from __future__ import annotations

from evidence.claim import Claim
from evidence.commands import minutes


def takes(page: str, text: str, command: str) -> Claim:
    """A text with the minutes of a command."""
    return Claim(page, text, lambda tables: [minutes(tables, command)])


CLAIMS = [
    takes("README.md", "profile, forecast, train, evaluate, report: about {:.0f} minutes on two cores", "make repro"),
    takes("README.md", "# the OCR pipeline under real traffic: about {:.0f} minutes", "make live"),
    takes("README.md", "# compare with peers: about {:.0f} minutes", "make bench"),
    takes(
        "Makefile", "serve the OCR pipeline on this machine, under load and policies: about {:.0f} minutes", "make live"
    ),
    takes("Makefile", "compare simulator, training and decisions with their peers: about {:.0f} minutes", "make bench"),
]
