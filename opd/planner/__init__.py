"""Planning by simulation: candidates for the next interval, tried against futures in the compiled simulator."""
