"""Commands of `demopsd`, one file each; the names of helpers begin with an underscore."""
