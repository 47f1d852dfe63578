"""Commands, one file each; the names of helpers begin with an underscore. `python -m launch.train configs/demo.yaml`"""
