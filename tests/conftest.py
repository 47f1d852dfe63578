"""Settings of all tests: one thread for the small tensors here, and no deadlines, because the machine may be busy."""

import hypothesis
import torch

torch.set_num_threads(1)  # waiting threads would be slower than one
hypothesis.settings.register_profile("no deadline", deadline=None)  # slow is not wrong
hypothesis.settings.load_profile("no deadline")
