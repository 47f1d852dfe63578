"""The training loop and everything a step of it needs, independent of Ray and of any engine."""
