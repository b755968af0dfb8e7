"""Learned policies; :mod:`opd.agent.single` is the agent that is trained for one pipeline."""
