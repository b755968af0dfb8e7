"""A text pipeline of two stages: embed a support ticket, and tell its queue. The tickets are synthetic."""
