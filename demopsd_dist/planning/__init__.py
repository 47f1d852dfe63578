"""Estimate of a run's memory, speed and cost before it starts: memory by role, seconds by stage, the best split of the
devices. Pure functions of a config, the model's shape and a table of hardware; no torch, no engine, no weights.

`workload.py` turns the config into numbers, `drawn_batch.py` draws one step's response lengths, rows and micro-batches
with the run's own packing. `sampling_time.py` and `forward_time.py` count the work of each stage, `roofline.py` turns
work into seconds with measured (`calibration.py`) or assumed efficiencies. `step_time.py` and `overlap.py` combine the
stages as the driver does, `memory_by_role.py` checks what fits, `splits.py` ranks all splits, `plan_text.py` prints.
"""
