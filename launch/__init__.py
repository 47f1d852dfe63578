"""The composition root: how a run starts. `python -m launch.train configs/demo.yaml`"""
