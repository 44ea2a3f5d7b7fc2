"""One engine for training runs: a job and its material become a case, a JSON file in a ledger."""
