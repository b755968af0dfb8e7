"""The learned policy: network, training and the deployed agent."""
