"""A tabular pipeline of three stages: restore missing readings, recognise, and accept or refer."""
