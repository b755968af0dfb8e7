"""The agent for one pipeline: network, training and the deployed agent."""
