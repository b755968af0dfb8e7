"""Policies and the control loop."""
