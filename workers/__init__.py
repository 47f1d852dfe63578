"""The Ray room: the only place that says ray, vllm or deepspeed. One engine a file."""

import os

# Ray reads this when it is imported. Without it, a call after the end of our Ray (late clean-up at an
# interrupt, for example) would look for any other cluster to connect to, and wait for it.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
