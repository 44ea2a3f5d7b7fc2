"""Cases: one training run of one network each, from a job to a JSON file."""
