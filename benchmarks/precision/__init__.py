"""Rounding of bfloat16: of the teacher, against one in float32; and between engine and learner."""
