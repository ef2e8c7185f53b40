"""Shows findings, proofs and checkpoints to users, as JSON and as text. Computes nothing new."""
