"""Studies: a designed comparison, run in an order fixed beforehand, that survives its client."""
