"""What a pipeline is made of and what is measured of it: catalogue, profiles, architectures."""
