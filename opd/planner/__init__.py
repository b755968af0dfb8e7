"""Planning by simulation: configurations for the next interval are tried against futures of the load."""
