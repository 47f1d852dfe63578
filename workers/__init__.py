"""The Ray room: the only place that says ray, vllm or deepspeed. One engine a file."""

import os

# Ray reads this when it is imported. Without it, a call that comes after the end of our Ray (what is cleaned up late,
# say, at an interrupt) would look for any other cluster to connect to, and wait for it.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
