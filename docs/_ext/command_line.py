"""The directive ``command-line``: every command of ``opd``, made of the same words as its ``--help``."""

from __future__ import annotations

import typer
from docutils import nodes
from elements import code, paragraph, section, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from opd.cli import app as command_line


class CommandLine(SphinxDirective):
    """A section for every command: what it does, an example, its arguments and options."""

    def run(self) -> list[nodes.Node]:
        """Create the sections, in the order of the help."""
        self.env.note_reread()  # what the page is made of is in many files
        group = typer.main.get_command(command_line)
        context = group.make_context("opd", [], resilient_parsing=True)
        return [self.command(context, name) for name in group.list_commands(context)]

    def command(self, above: typer.Context, name: str) -> nodes.section:
        """Create the section of one command."""
        command = above.command.get_command(above, name)
        context = command.make_context(name, [], parent=above, resilient_parsing=True)
        records = filter(None, (parameter.get_help_record(context) for parameter in command.get_params(context)))
        rows = [(code(joined(usage)), joined(text)) for usage, text in records]
        example = command.epilog.partition("\n")[0].removeprefix("example: ")
        sample = nodes.literal_block(example, example, language="console")
        text = [paragraph(joined(part)) for part in command.help.split("\n\n")]
        return section(code(f"opd {name}"), f"opd-{name}", *text, sample, table(("argument or option", ""), rows))


def joined(text: str) -> str:
    """Join the lines of a text."""
    return " ".join(text.split())


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
