"""One value, several forms: findings, proofs and checkpoints as JSON and as text. Computes nothing new."""
