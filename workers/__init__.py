"""The Ray room: the only place that says ray, vllm or deepspeed. One engine a file."""
