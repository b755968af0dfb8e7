"""Real traffic through a served pipeline, recorded and compared with the simulator."""
