"""What a run will need and take, before it is paid for. Pure: a config, the model's shape and a table of hardware in;
memory by role, seconds by stage and the best split of devices out. No torch, no engine, no weights.

A step is drawn (`drawn.py`: lengths of responses, rows, micro-batches, by the same packing as a run's), its work is
counted (`sampling.py`, `forwards.py`, `publish.py`) and a roofline with measured or assumed efficiencies (`load.py`,
`calibration.py`) makes seconds of it; `steps.py` puts the stages together as the driver does.
"""
