"""Fuzzing of the planning half: damaged checkpoints against a reference, and headers against the safetensors package.

Developer tools, not part of CI: ``python -m tools.fuzz`` (``make fuzz``) runs both and keeps what they found.
"""
