"""`demopsd_loss` by itself: the example in its docstring runs."""

from __future__ import annotations

import doctest
import inspect

from demopsd_dist.objective import demopsd_loss, standalone_loss


def test_the_example_in_the_docstring_runs() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(demopsd_loss, module=standalone_loss)
    assert len(example.examples) == 6
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_docstring_names_every_argument() -> None:
    documented = inspect.getdoc(demopsd_loss)
    assert documented is not None
    assert [name for name in inspect.signature(demopsd_loss).parameters if f"{name}:" not in documented] == []
