"""The report: tables, acceptance criteria and the generated page."""
