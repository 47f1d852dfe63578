"""Rollout workers: vLLM engines, the pool that replaces them, and the dispatch of prompts."""
