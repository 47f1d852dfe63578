"""For all tests: tensors here are small, and the machine may be busy."""

import hypothesis
import torch

torch.set_num_threads(1)  # threads that wait for each other are slower than one
hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")
