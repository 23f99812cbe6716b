"""What representations encode, per language, layer and subnetwork."""
